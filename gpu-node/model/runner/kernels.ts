/** The operators of our own that a base's sessions use on this machine. */

import { type AttentionShape, fitsAttentionKernel, type KvFormat } from '../../ort/attention-kernel/attention-layout.ts'
import { installAttentionOp } from '../../ort/attention-kernel/attention-op.ts'
import type { OrtLibrary } from '../../ort/library.ts'
import { installLinearOp } from '../../ort/linear-kernel/linear-op.ts'
import type { KernelWeights } from '../../ort/lora-kernel/kernel-layout.ts'
import { installLoraOp } from '../../ort/lora-kernel/lora-op.ts'
import { createOpDomain } from '../../ort/machine-code/custom-op.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import { attentionShape } from '../graph/attention.ts'
import { isFused, isTiled, type WeightFormat } from '../graph/graph-form.ts'
import { planMatrices, type WeightPlan } from '../graph/weight-plan.ts'
import type { AdapterLayout } from '../packed-adapter.ts'

export interface Kernels {
  /** How adapters are to be packed: for a kernel, or `graph` where none can run. */
  adapterLayout: AdapterLayout
  /** Matrices of 8 bits are computed by our own product. */
  tiled: boolean
  /** Format of the KV cache of our own attention; absent: GroupQueryAttention. */
  kv: KvFormat | undefined
  /** For `SessionOptions.customOps`. */
  domain: bigint | undefined
}

export const NO_KERNELS: Kernels = { adapterLayout: 'graph', tiled: false, kv: undefined, domain: undefined }

export function installKernels(
  library: OrtLibrary,
  decoder: DecoderSpec,
  plan: WeightPlan,
  dtype: WeightFormat,
): Kernels {
  const linear = inputSizes(plan, dtype).map((inputs) => installLinearOp(library, inputs))
  const tiled = linear.length > 0 && linear.every((op) => op !== undefined)
  // Adapters lose no more in int8 than the base does; in f32 all is exact.
  const weights: KernelWeights = dtype === 'f32' ? 'f32' : 'int8'
  const fused = isFused({ weights: dtype, tiled }, plan)
  const lora = fused ? undefined : installLoraOp(library, weights)
  // Beside quantised weights a cache in float16 loses nothing that counts, and is half as much to read.
  const format: KvFormat = dtype === 'f32' ? 'f32' : 'f16'
  const shapes = attentionShapes(decoder, format)
  const attention = shapes.every(fitsAttentionKernel) ? shapes.map((shape) => installAttentionOp(library, shape)) : []
  const kv = attention.length > 0 && attention.every((op) => op !== undefined) ? format : undefined
  const ops = [lora, ...(tiled ? linear : []), ...(kv === undefined ? [] : attention)].filter((op) => op !== undefined)
  return {
    adapterLayout: fused ? 'kernel-tiled' : lora === undefined ? 'graph' : `kernel-${weights}`,
    tiled,
    kv,
    domain: ops.length === 0 ? undefined : createOpDomain(library, ops),
  }
}

function attentionShapes(decoder: DecoderSpec, kv: KvFormat): AttentionShape[] {
  const tables = new Set(decoder.layers.map(({ attention }) => attention.ropeTable))
  const shapes = [...tables].map((index) => {
    const rope = index === undefined ? undefined : decoder.ropeTables[index]
    return attentionShape(decoder, rope, kv)
  })
  return shapes.filter((shape, i) => shapes.findIndex((it) => it.rotaryHalf === shape.rotaryHalf) === i)
}

function inputSizes(plan: WeightPlan, weights: WeightFormat): number[] {
  const fitting = planMatrices(plan).filter((matrix) => isTiled({ weights, tiled: true }, matrix))
  return [...new Set(fitting.map((matrix) => matrix.inFeatures))]
}
