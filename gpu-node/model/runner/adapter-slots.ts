/** The adapters in the engine, by slot, and binding them to runs. */

import { RingletError } from '../../../shared/errors.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { type AdapterTableLayout, layOutAdapterTable } from '../graph/adapter-table.ts'
import { type MatrixPlan, planMatrices, type WeightPlan } from '../graph/weight-plan.ts'
import type { AdapterLayout, PackedAdapter } from '../packed-adapter.ts'
import { disposeLoaded, type LoadedAdapter, makeLoaded } from './loaded-adapter.ts'

export class AdapterSlots {
  readonly #environment: OrtEnvironment
  readonly #matrices: readonly MatrixPlan[]
  readonly #table: AdapterTableLayout
  readonly #layout: AdapterLayout
  readonly #loaded: (LoadedAdapter | undefined)[]

  /** `layout`: the kernel layout that the sessions' operator reads, or `graph` where there is none. */
  constructor(environment: OrtEnvironment, plan: WeightPlan, slots: number, layout: AdapterLayout) {
    this.#environment = environment
    this.#matrices = planMatrices(plan)
    this.#table = layOutAdapterTable(plan, layout === 'kernel-tiled')
    this.#layout = layout
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
    if (packed.layout !== 'graph' && packed.layout !== this.#layout) {
      throw new RingletError('internal', `an adapter packed as ${packed.layout}; this engine takes ${this.#layout}`)
    }
    this.#loaded[slot] = makeLoaded(this.#environment, this.#matrices, this.#table, packed)
  }

  unload(slot: number): void {
    disposeLoaded(this.get(slot))
    this.#loaded[slot] = undefined
  }

  /** Binds the one adapter of a run. */
  bind(binding: OrtBinding, slot: number): void {
    const { inputs, headInputs, traits } = this.get(slot)
    for (const [name, tensor] of inputs) {
      binding.input(name, tensor)
    }
    if (traits.head) {
      for (const [name, tensor] of headInputs) {
        binding.input(name, tensor)
      }
    }
  }

  dispose(): void {
    for (const [slot, adapter] of this.#loaded.entries()) {
      if (adapter !== undefined) {
        this.unload(slot)
      }
    }
  }
}
