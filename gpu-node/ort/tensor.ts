/** A tensor over memory that somebody else owns: a typed array, or an address whose owner outlives the tensor. */

import { RingletError } from '../../shared/errors.ts'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'

/** ONNXTensorElementDataType. */
export const ELEMENT_TYPES = { float32: 1, uint8: 2, int8: 3, int32: 6, int64: 7, float16: 10, bfloat16: 16 } as const
export type ElementType = keyof typeof ELEMENT_TYPES

const ELEMENT_BYTES: Record<ElementType, number> = {
  float32: 4,
  uint8: 1,
  int8: 1,
  int32: 4,
  int64: 8,
  float16: 2,
  bfloat16: 2,
}

export type TensorArray = Float32Array | Uint8Array | Int8Array | Int32Array | BigInt64Array | Uint16Array

export class OrtTensor {
  readonly shape: readonly number[]
  readonly #environment: OrtEnvironment
  /** Keeps the memory reachable as long as the tensor is. */
  readonly data: TensorArray | bigint
  #value: OrtHandle

  /** `memory`: memory info of the device on which `data` lies. */
  constructor(
    environment: OrtEnvironment,
    type: ElementType,
    shape: readonly number[],
    data: TensorArray | bigint,
    memory: OrtHandle = environment.cpu,
  ) {
    const bytes = shape.reduce((product, size) => product * size, ELEMENT_BYTES[type])
    if (typeof data !== 'bigint' && data.byteLength < bytes) {
      const wanted = `[${shape.join(', ')}] ${type} needs ${bytes} bytes`
      throw new RingletError('internal', `a tensor of ${wanted}; its array has ${data.byteLength}`)
    }
    this.shape = shape
    this.data = data
    this.#environment = environment
    const dimensions = BigInt64Array.from(shape, BigInt)
    this.#value = environment.create((out) =>
      environment.functions.CreateTensorWithDataAsOrtValue(
        memory,
        data,
        bytes,
        dimensions,
        shape.length,
        ELEMENT_TYPES[type],
        out,
      ),
    )
  }

  get handle(): OrtHandle {
    if (this.#value === 0n) {
      throw new RingletError('internal', `a disposed tensor of [${this.shape.join(', ')}] is used`)
    }
    return this.#value
  }

  dispose(): void {
    if (this.#value !== 0n) {
      this.#environment.functions.ReleaseValue(this.#value)
      this.#value = 0n
    }
  }
}
