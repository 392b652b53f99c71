/** Which graph is built: the weights' format, and how adapters enter. One session each, over one copy of the weights. */

import { fitsLinearKernel } from '../../ort/linear-kernel/linear-layout.ts'
import type { AdapterTableLayout } from './adapter-table.ts'
import type { MatrixPlan } from './weight-plan.ts'

export type WeightFormat = 'f32' | 'int8' | 'int4'

export interface GraphForm {
  weights: WeightFormat
  /**
   * `none`: base rows only. `kernel`: each row its own adapter or none, by the LoRA kernel. `uniform`: every row uses one
   * adapter, whose matrices are the graph's inputs; for adapters and machines that the kernel does not take.
   */
  lora: 'none' | 'kernel' | 'uniform'
  /** Some adapter has DoRA magnitudes or biases: outputs are multiplied by a gain and shifted. */
  extras: boolean
  /** Some adapter adapts the head. */
  head: boolean
  /** int8 matrices lie in tiles, for the int8 product's kernel, where their shapes fit. */
  tiled: boolean
}

/** What the parts of the builder need to know. */
export interface BuildForm extends GraphForm {
  table: AdapterTableLayout
}

/** Whether this matrix is in tiles; the others are in MatMulNBits' layout. */
export function isTiled(
  { weights, tiled }: Pick<GraphForm, 'weights' | 'tiled'>,
  { inFeatures, outFeatures }: MatrixPlan,
): boolean {
  return weights === 'int8' && tiled && fitsLinearKernel(inFeatures, outFeatures)
}

export function formKey({ weights, lora, extras, head, tiled }: GraphForm): string {
  return `${weights}${tiled ? '/tiled' : ''}/${lora}${extras ? '/extras' : ''}${head ? '/head' : ''}`
}
