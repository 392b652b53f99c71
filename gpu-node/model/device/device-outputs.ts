/** A device run's outputs, on the device and, as far as they are asked for, on the host. */

import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import { HIDDEN, LOGITS } from '../graph/graph-names.ts'
import type { DeviceContext, StagingMemory } from './device-context.ts'

/** Rows of `columns` float32 numbers. */
export class OutputRows {
  readonly #device: DeviceContext
  readonly #columns: number
  readonly #address: bigint
  readonly #staging: StagingMemory
  readonly #host: Float32Array
  /** By shape. */
  readonly #bound = new Map<string, OrtTensor>()

  constructor(device: DeviceContext, rows: number, columns: number) {
    const bytes = rows * columns * 4
    this.#device = device
    this.#columns = columns
    this.#address = device.allocate(bytes)
    this.#staging = device.staging(bytes)
    this.#host = new Float32Array(this.#staging.bytes.buffer, this.#staging.bytes.byteOffset, bytes / 4)
  }

  tensor(shape: number[]): OrtTensor {
    const key = shape.join('x')
    const known = this.#bound.get(key)
    if (known !== undefined) {
      return known
    }
    const tensor = this.#device.tensor('float32', shape, this.#address)
    this.#bound.set(key, tensor)
    return tensor
  }

  get address(): bigint {
    return this.#address
  }

  /** Some rows; valid until the next call. */
  fetch(rows: number, first = 0): Float32Array {
    if (rows > 0) {
      const from = this.#address + BigInt(first * this.#columns * 4)
      this.#device.download(from, rows * this.#columns * 4, this.#staging)
    }
    return this.#host.subarray(0, rows * this.#columns)
  }

  dispose(): void {
    for (const tensor of this.#bound.values()) {
      tensor.dispose()
    }
    this.#bound.clear()
  }
}

/** The rows of logits on the device. */
export interface LogitRows {
  address: bigint
  rows: number
  vocabSize: number
  /** Copies some down. */
  fetch(first: number, count: number): Float32Array
}

export interface OutputSizes {
  hiddenSize: number
  vocabSize: number
  /** Most tokens of a run whose hidden states, and whose logits, are asked for. */
  hiddenRows: number
  logitRows: number
}

export class DeviceOutputs {
  readonly #sizes: OutputSizes
  readonly #hidden: OutputRows
  readonly #logits: OutputRows

  constructor(device: DeviceContext, sizes: OutputSizes) {
    this.#sizes = sizes
    this.#hidden = new OutputRows(device, sizes.hiddenRows, sizes.hiddenSize)
    this.#logits = new OutputRows(device, sizes.logitRows, sizes.vocabSize)
  }

  bind(binding: OrtBinding, hidden: number, logits: number): void {
    binding.output(HIDDEN, this.#hidden.tensor([hidden, this.#sizes.hiddenSize]))
    binding.output(LOGITS, this.#logits.tensor([logits, 1, this.#sizes.vocabSize]))
  }

  hidden(rows: number): Float32Array {
    return this.#hidden.fetch(rows)
  }

  logits(rows: number): Float32Array {
    return this.#logits.fetch(rows)
  }

  /** All rows, for those who read them on the device. */
  get logitRows(): LogitRows {
    const { logitRows: rows, vocabSize } = this.#sizes
    const { address } = this.#logits
    return { address, rows, vocabSize, fetch: (first, count) => this.#logits.fetch(count, first) }
  }

  dispose(): void {
    this.#hidden.dispose()
    this.#logits.dispose()
  }
}
