/** Where each matrix's record lies in an adapter's table, which the LoRA kernel reads. Pure. */

import { groupRecordBytes } from '../../ort/lora-kernel/lora-op.ts'
import { RECORD_WORDS } from '../../ort/lora-kernel/tiled-layout.ts'
import { type MatrixPlan, planMatrices, type WeightPlan } from './weight-plan.ts'

export interface AdapterTableLayout {
  /** int64 words of a table. */
  words: number
  /** By matrix name, in words. */
  offsets: ReadonlyMap<string, number>
}

/** `tiled`: of adapters in the layout `kernel-tiled`. */
export function layOutAdapterTable(plan: WeightPlan, tiled: boolean): AdapterTableLayout {
  const offsets = new Map<string, number>()
  let words = 0
  for (const { name, parts } of planMatrices(plan)) {
    offsets.set(name, words)
    words += tiled ? RECORD_WORDS : groupRecordBytes(parts.length) / 8
  }
  return { words, offsets }
}

/** The kernel's constant input: K, N, and the record's offset in bytes. */
export function kernelShape(layout: AdapterTableLayout, { name, inFeatures, outFeatures }: MatrixPlan): number[] {
  return [inFeatures, outFeatures, layout.offsets.get(name)! * 8]
}
