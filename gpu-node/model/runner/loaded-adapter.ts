/** A packed adapter made ready for runs: tensors over its parts, and the table that the LoRA kernel reads. */

import type { OrtEnvironment } from '../../ort/environment.ts'
import type { PackedGroup } from '../../ort/lora-kernel/kernel-layout.ts'
import { addressOf, writeGroupRecord } from '../../ort/lora-kernel/lora-op.ts'
import { type TiledGroup, writeTiledRecord } from '../../ort/lora-kernel/tiled-layout.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { AdapterTableLayout } from '../graph/adapter-table.ts'
import { loraInputs } from '../graph/graph-names.ts'
import { isHead, type MatrixPlan } from '../graph/weight-plan.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED, HEAD_SAVED, HEAD_SAVED_BIAS } from '../packed-parts.ts'
import type { AdapterTraits } from './choose-form.ts'

/** An adapter's change of token embeddings: low rank, or a table of its own. */
export interface EmbeddingDelta {
  /** `[vocab, rank]` */
  a: Float32Array | undefined
  /** `[rank, hidden]`, scaled. */
  b: Float32Array | undefined
  /** `[vocab, hidden]` */
  saved: Float32Array | undefined
}

/** A head of the adapter's own: `[vocab, hidden]`, and `[vocab]`. */
export interface SavedHead {
  weight: OrtTensor
  bias: Float32Array | undefined
}

export interface LoadedAdapter {
  /** Its arrays are what the tensors and the table point to. */
  packed: PackedAdapter
  traits: AdapterTraits
  embedding: EmbeddingDelta | undefined
  savedHead: SavedHead | undefined
  /** Matrices of the layout `graph`, gains and shifts, by input name; the head's apart, for graphs that adapt it. */
  inputs: ReadonlyMap<string, OrtTensor>
  headInputs: ReadonlyMap<string, OrtTensor>
  table: BigInt64Array
  /** Of the table. */
  address: bigint
}

export function makeLoaded(
  environment: OrtEnvironment,
  matrices: readonly MatrixPlan[],
  layout: AdapterTableLayout,
  packed: PackedAdapter,
): LoadedAdapter {
  const { parts, groups, features } = packed
  const kernel = packed.layout !== 'graph'
  const extras = features.bias || features.magnitude
  const inputs = new Map<string, OrtTensor>()
  const headInputs = new Map<string, OrtTensor>()
  const table = new BigInt64Array(layout.words)
  for (const matrix of matrices) {
    const tensors = isHead(matrix) ? headInputs : inputs
    if (!kernel) {
      addMatrices(environment, matrix, parts, tensors)
    } else if (groups[matrix.name] !== undefined) {
      writeRecord(table, layout.offsets.get(matrix.name)!, groups[matrix.name]!)
    }
    if (extras) {
      addExtras(environment, matrix, parts, tensors)
    }
  }
  return {
    packed,
    traits: { kernel, extras, head: features.head },
    embedding: embeddingDelta(parts),
    savedHead: savedHead(environment, matrices, parts),
    inputs,
    headInputs,
    table,
    address: addressOf(table),
  }
}

/** A matrix that is not adapted keeps zeros. */
function writeRecord(table: BigInt64Array, offset: number, group: PackedGroup | TiledGroup): void {
  if ('segments' in group) {
    writeGroupRecord(table, offset, group)
    return
  }
  writeTiledRecord(table, offset, group)
}

export function disposeLoaded({ inputs, headInputs, savedHead }: LoadedAdapter): void {
  for (const tensor of [...inputs.values(), ...headInputs.values()]) {
    tensor.dispose()
  }
  savedHead?.weight.dispose()
}

/** A tensor of rank 0 has no bytes, but an address. */
const NOTHING = new Float32Array(1)

function addMatrices(
  environment: OrtEnvironment,
  matrix: MatrixPlan,
  parts: PackedAdapter['parts'],
  tensors: Map<string, OrtTensor>,
): void {
  for (const [i, { inFeatures, outFeatures }] of matrix.parts.entries()) {
    const { a, b } = loraInputs(matrix, i)
    const rank = (parts[a]?.length ?? 0) / inFeatures
    tensors.set(a, new OrtTensor(environment, 'float32', [rank, inFeatures], parts[a] ?? NOTHING))
    tensors.set(b, new OrtTensor(environment, 'float32', [rank, outFeatures], parts[b] ?? NOTHING))
  }
}

/** One gain and shift for all rows of a run. */
function addExtras(
  environment: OrtEnvironment,
  matrix: MatrixPlan,
  parts: PackedAdapter['parts'],
  tensors: Map<string, OrtTensor>,
): void {
  const { gain, shift } = loraInputs(matrix, 0)
  const size = matrix.outFeatures
  const shape = [1, 1, size]
  const gains = parts[gain] ?? new Float32Array(size).fill(1)
  const shifts = parts[shift] ?? new Float32Array(size)
  tensors.set(gain, new OrtTensor(environment, 'float32', shape, gains))
  tensors.set(shift, new OrtTensor(environment, 'float32', shape, shifts))
}

function embeddingDelta(parts: PackedAdapter['parts']): EmbeddingDelta | undefined {
  const delta = { a: parts[EMBEDDING_A], b: parts[EMBEDDING_B], saved: parts[EMBEDDING_SAVED] }
  return delta.a === undefined && delta.saved === undefined ? undefined : delta
}

function savedHead(
  environment: OrtEnvironment,
  matrices: readonly MatrixPlan[],
  parts: PackedAdapter['parts'],
): SavedHead | undefined {
  const weight = parts[HEAD_SAVED]
  const head = matrices.find(isHead)
  if (weight === undefined || head === undefined) {
    return undefined
  }
  const shape = [head.outFeatures, head.inFeatures]
  return { weight: new OrtTensor(environment, 'float32', shape, weight), bias: parts[HEAD_SAVED_BIAS] }
}
