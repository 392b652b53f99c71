/** Which runs a decode step takes, and in which graph form: a pure function of its rows' adapters. */

import type { GraphForm } from '../graph/graph-form.ts'

/** What the choice depends on. */
export interface AdapterTraits {
  /** Packed for the LoRA kernel. */
  kernel: boolean
  extras: boolean
  head: boolean
}

export type RunForm = Omit<GraphForm, 'weights' | 'tiled' | 'kv'>

/** Rows `first … first + count - 1`. */
export interface DecodeRun {
  first: number
  count: number
  form: RunForm
  /** The one adapter of a `uniform` run. */
  adapterSlot: number | undefined
}

export const BASE_FORM: RunForm = { lora: 'none', extras: false, head: false }

export function soleForm(adapter: AdapterTraits | undefined): RunForm {
  if (adapter === undefined) {
    return BASE_FORM
  }
  const { kernel, extras, head } = adapter
  return { lora: kernel ? 'kernel' : 'uniform', extras, head }
}

/**
 * One run for all rows, whatever adapters the kernel takes for them; then one more for each stretch of rows whose adapter it
 * does not take. Those rows run in the first as if on the base: what they leave at their position is overwritten.
 */
export function planDecode(
  adapterSlots: readonly (number | undefined)[],
  traitsOf: (adapterSlot: number) => AdapterTraits,
): DecodeRun[] {
  const rows = adapterSlots.map((slot) => (slot === undefined ? undefined : traitsOf(slot)))
  const runs = stretches(adapterSlots).flatMap(({ first, count, adapterSlot }): DecodeRun[] => {
    const adapter = rows[first]
    return adapter === undefined || adapter.kernel ? [] : [{ first, count, adapterSlot, form: soleForm(adapter) }]
  })
  if (rows.some((adapter) => adapter === undefined || adapter.kernel)) {
    runs.unshift({ first: 0, count: rows.length, adapterSlot: undefined, form: sharedForm(rows) })
  }
  return runs
}

/** Of a run in which rows decode and others prefill; `undefined` when some adapter has more than the kernel takes by token. */
export function mixedForm(adapters: readonly AdapterTraits[]): RunForm | undefined {
  const form = sharedForm(adapters)
  return form.extras || adapters.some(({ kernel }) => !kernel) ? undefined : form
}

function sharedForm(rows: readonly (AdapterTraits | undefined)[]): RunForm {
  const adapters = rows.filter((adapter) => adapter?.kernel === true)
  if (adapters.length === 0) {
    return BASE_FORM
  }
  const some = (trait: 'extras' | 'head'): boolean => adapters.some((adapter) => adapter?.[trait] === true)
  return { lora: 'kernel', extras: some('extras'), head: some('head') }
}

/** Consecutive rows with the same adapter. */
function stretches(adapterSlots: readonly (number | undefined)[]) {
  const found: { first: number; count: number; adapterSlot: number | undefined }[] = []
  for (const [row, adapterSlot] of adapterSlots.entries()) {
    const last = found.at(-1)
    if (last !== undefined && last.adapterSlot === adapterSlot) {
      last.count++
    } else {
      found.push({ first: row, count: 1, adapterSlot })
    }
  }
  return found
}
