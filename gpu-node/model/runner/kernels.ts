/** The operators of our own that a base's sessions use on this machine. */

import type { OrtLibrary } from '../../ort/library.ts'
import { fitsLinearKernel } from '../../ort/linear-kernel/linear-layout.ts'
import { installLinearOp } from '../../ort/linear-kernel/linear-op.ts'
import type { KernelWeights } from '../../ort/lora-kernel/kernel-layout.ts'
import { installLoraOp } from '../../ort/lora-kernel/lora-op.ts'
import { createOpDomain } from '../../ort/machine-code/custom-op.ts'
import type { WeightFormat } from '../graph/graph-form.ts'
import { planMatrices, type WeightPlan } from '../graph/weight-plan.ts'

export interface Kernels {
  /** Format in which the LoRA kernel reads adapters; absent where it cannot run. */
  lora: KernelWeights | undefined
  /** int8 matrices are computed by our own product. */
  tiled: boolean
  /** For `SessionOptions.customOps`. */
  domain: bigint | undefined
}

export const NO_KERNELS: Kernels = { lora: undefined, tiled: false, domain: undefined }

export function installKernels(library: OrtLibrary, plan: WeightPlan, dtype: WeightFormat): Kernels {
  // Adapters lose no more in int8 than the base does; in f32 all is exact.
  const weights: KernelWeights = dtype === 'f32' ? 'f32' : 'int8'
  const lora = installLoraOp(library, weights)
  const linear = dtype === 'int8' ? inputSizes(plan).map((inputs) => installLinearOp(library, inputs)) : []
  const tiled = linear.length > 0 && linear.every((op) => op !== undefined)
  const ops = [lora, ...(tiled ? linear : [])].filter((op) => op !== undefined)
  return {
    lora: lora === undefined ? undefined : weights,
    tiled,
    domain: ops.length === 0 ? undefined : createOpDomain(library, ops),
  }
}

function inputSizes(plan: WeightPlan): number[] {
  const fitting = planMatrices(plan).filter((matrix) => fitsLinearKernel(matrix.inFeatures, matrix.outFeatures))
  return [...new Set(fitting.map((matrix) => matrix.inFeatures))]
}
