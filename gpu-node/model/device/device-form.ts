/** Which graph a device session runs, and what its numbers are. */

import type { ElementType } from '../../ort/tensor.ts'

/** `f16`, `bf16`: weights as sixteen-bit numbers, and all else too. int8 and int4: `MatMulNBits`. f32 is for parity on the processor. */
export type DeviceFormat = 'f16' | 'bf16' | 'f32' | 'int8' | 'int4'
/** Activations, KV, norms, adapters. */
export type DeviceFloats = Extract<ElementType, 'float16' | 'bfloat16' | 'float32'>

export const FLOAT_BYTES: Record<DeviceFloats, number> = { float16: 2, bfloat16: 2, float32: 4 }

/** Of the device's graphs: ONNX Runtime has a CUDA kernel for its Identity, and none for that of 21. */
export const DEVICE_OPSET = 20

export interface DeviceForm {
  /**
   * `none`: base rows only. `gather`: the step's adapters are gathered from the banks, which costs their bytes three times.
   * `window`: the banks are read up to the last slot in use.
   */
  lora: 'none' | 'gather' | 'window'
  /** Some adapter of the step has DoRA magnitudes or biases. */
  extras: boolean
  /** Some adapter of the step adapts the head. */
  head: boolean
  /** Some adapter of the step changes embeddings: the host sends what is added, and which rows of the table count. */
  embedding: boolean
}

export const BASE_DEVICE_FORM: DeviceForm = { lora: 'none', extras: false, head: false, embedding: false }

export function deviceFormKey({ lora, extras, head, embedding }: DeviceForm): string {
  return `${lora}${extras ? '/extras' : ''}${head ? '/head' : ''}${embedding ? '/embedding' : ''}`
}
