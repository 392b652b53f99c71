/** Which graph is built: the weights' format, and how adapters enter. One session each, over one copy of the weights. */

import type { KvFormat } from '../../ort/attention-kernel/attention-layout.ts'
import { fitsLinearKernel } from '../../ort/linear-kernel/linear-layout.ts'
import type { QuantisedBits } from '../quantise.ts'
import type { AdapterTableLayout } from './adapter-table.ts'
import type { GraphWriter } from './graph-writer.ts'
import { isHead, isRouter, type MatrixPlan, planMatrices, type WeightPlan } from './weight-plan.ts'

export type WeightFormat = 'f32' | 'int8' | 'int4'

/** The attention kernel's cache; `positions` a row, in whole blocks. */
export interface KernelKv {
  format: KvFormat
  positions: number
}

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
  /** Matrices of 8 bits lie in tiles, for the int8 product's kernel, where their shapes fit. */
  tiled: boolean
  /** Attention by our own kernel, over a cache of this kind; absent: GroupQueryAttention, over float32. */
  kv?: KernelKv | undefined
}

/** What the parts of the builder need to know. */
export interface BuildForm extends GraphForm {
  table: AdapterTableLayout
  /** The layers are written for the int8 product that does what surrounds products too (`isFused`). */
  fused?: boolean
  /** What adapters make of `base`, the product of `x` with a matrix; in place of `lora`. */
  adapt?: (graph: GraphWriter, matrix: MatrixPlan, x: string, base: string) => string
}

/**
 * Bits of a matrix's numbers. The head keeps 8 in int4: it decides among all tokens at once. On a 135M model it halves the
 * divergence that int4 brings to text, for a fifth more bytes; on larger ones the head's share is smaller.
 */
export function matrixBits(weights: 'int8' | 'int4', matrix: MatrixPlan): QuantisedBits {
  return weights === 'int8' || isHead(matrix) ? 8 : 4
}

/** Whether this matrix is in tiles; the others are in MatMulNBits' layout. */
export function isTiled({ weights, tiled }: Pick<GraphForm, 'weights' | 'tiled'>, matrix: MatrixPlan): boolean {
  return (
    tiled &&
    weights !== 'f32' &&
    matrixBits(weights, matrix) === 8 &&
    fitsLinearKernel(matrix.inFeatures, matrix.outFeatures)
  )
}

/**
 * Whether the int8 product does all that surrounds the layers' products: norms, sums, gates, and adapters in the layout
 * `kernel-tiled`. Its matrices are all in tiles then; the head may be none.
 */
export function isFused({ weights, tiled }: Pick<GraphForm, 'weights' | 'tiled'>, plan: WeightPlan): boolean {
  const inLayers = planMatrices(plan).filter((matrix) => !isHead(matrix) && !isRouter(matrix))
  return (
    weights === 'int8' &&
    inLayers.every(
      (matrix) =>
        isTiled({ weights, tiled }, matrix) &&
        matrix.parts.every(({ outFeatures }) => fitsLinearKernel(matrix.inFeatures, outFeatures)),
    )
  )
}

export function formKey({ weights, lora, extras, head, tiled, kv }: GraphForm): string {
  return `${weights}${tiled ? '/tiled' : ''}${kv === undefined ? '' : `/${kv.format}x${kv.positions}`}/${lora}${extras ? '/extras' : ''}${head ? '/head' : ''}`
}
