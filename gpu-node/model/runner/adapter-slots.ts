/** The adapters in the engine: tensors over their packed parts, by slot. */

import { RingletError } from '../../../shared/errors.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import { loraInputs } from '../graph/graph-names.ts'
import { type MatrixPlan, planMatrices, type WeightPlan } from '../graph/weight-plan.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED, HEAD_SAVED, HEAD_SAVED_BIAS } from '../packed-parts.ts'

/** An adapter's change of token embeddings: low rank, or a table of its own. */
export interface EmbeddingDelta {
  /** `[vocab, rank]` */
  a?: Float32Array
  /** `[rank, hidden]`, scaled. */
  b?: Float32Array
  /** `[vocab, hidden]` */
  saved?: Float32Array
}

/** A head of the adapter's own, `[vocab, hidden]` and `[vocab]`. */
export interface SavedHead {
  weight: OrtTensor
  bias: Float32Array | undefined
}

export interface LoadedAdapter {
  digest: string
  /** Has DoRA magnitudes or biases. */
  extras: boolean
  embedding: EmbeddingDelta | undefined
  savedHead: SavedHead | undefined
  /** By input name. */
  inputs: ReadonlyMap<string, OrtTensor>
}

export class AdapterSlots {
  readonly #environment: OrtEnvironment
  readonly #matrices: readonly MatrixPlan[]
  readonly #hiddenSize: number
  readonly #loaded: (LoadedAdapter | undefined)[]

  constructor(environment: OrtEnvironment, plan: WeightPlan, slots: number) {
    this.#environment = environment
    this.#matrices = planMatrices(plan)
    this.#hiddenSize = plan.head.inFeatures
    this.#loaded = Array.from({ length: slots })
  }

  /** Fails where the slot is empty: a sequence never runs on the base because its adapter is missing. */
  get(slot: number): LoadedAdapter {
    const adapter = this.#loaded[slot]
    if (adapter === undefined) {
      throw new RingletError('engine_failed', `adapter slot ${slot} of ${this.#loaded.length} is empty`)
    }
    return adapter
  }

  load(slot: number, packed: PackedAdapter): void {
    if (!Number.isInteger(slot) || slot < 0 || slot >= this.#loaded.length) {
      throw new RingletError('internal', `adapter slot ${slot}; there are ${this.#loaded.length}`)
    }
    if (this.#loaded[slot] !== undefined) {
      throw new RingletError('internal', `adapter slot ${slot} is in use`)
    }
    this.#loaded[slot] = this.#toLoaded(packed)
  }

  unload(slot: number): void {
    const adapter = this.get(slot)
    for (const tensor of adapter.inputs.values()) {
      tensor.dispose()
    }
    adapter.savedHead?.weight.dispose()
    this.#loaded[slot] = undefined
  }

  bind(binding: OrtBinding, slot: number): void {
    for (const [name, tensor] of this.get(slot).inputs) {
      binding.input(name, tensor)
    }
  }

  dispose(): void {
    for (const [slot, adapter] of this.#loaded.entries()) {
      if (adapter !== undefined) {
        this.unload(slot)
      }
    }
  }

  #toLoaded({ digest, parts, features }: PackedAdapter): LoadedAdapter {
    const extras = features.bias || features.magnitude
    const inputs = new Map<string, OrtTensor>()
    const add = (name: string, shape: number[], data: Float32Array | undefined): void => {
      inputs.set(name, new OrtTensor(this.#environment, 'float32', shape, data ?? NOTHING))
    }
    for (const matrix of this.#matrices) {
      for (const [i, part] of matrix.parts.entries()) {
        const { a, b } = loraInputs(matrix, i)
        const rank = (parts[a]?.length ?? 0) / part.inFeatures
        add(a, [rank, part.inFeatures], parts[a])
        add(b, [rank, part.outFeatures], parts[b])
      }
      if (extras) {
        const { gain, shift } = loraInputs(matrix, 0)
        add(gain, [matrix.outFeatures], parts[gain] ?? new Float32Array(matrix.outFeatures).fill(1))
        add(shift, [matrix.outFeatures], parts[shift] ?? new Float32Array(matrix.outFeatures))
      }
    }
    return { digest, extras, embedding: embeddingDelta(parts), savedHead: this.#savedHead(parts), inputs }
  }

  #savedHead(parts: PackedAdapter['parts']): SavedHead | undefined {
    const weight = parts[HEAD_SAVED]
    if (weight === undefined) {
      return undefined
    }
    const shape = [weight.length / this.#hiddenSize, this.#hiddenSize]
    return { weight: new OrtTensor(this.#environment, 'float32', shape, weight), bias: parts[HEAD_SAVED_BIAS] }
  }
}

/** A tensor of rank 0 has no bytes, but an address. */
const NOTHING = new Float32Array(1)

function embeddingDelta(parts: PackedAdapter['parts']): EmbeddingDelta | undefined {
  const delta = { a: parts[EMBEDDING_A], b: parts[EMBEDDING_B], saved: parts[EMBEDDING_SAVED] }
  return delta.a === undefined && delta.saved === undefined ? undefined : delta
}
