/** A shortlist run's outputs: one piece of memory on the device, so that they come down in one copy, and what they say by row. */

import type { Shortlist } from '../../engine/engine-types.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import type { DeviceContext, StagingMemory } from './device-context.ts'
import { outputColumns, type ShortlistShape } from './shortlist-graph.ts'

/** Numbers: outputs start at multiples of 256 bytes, as all memory of the device. */
const ALIGNMENT = 64

/** Numbers of a run of so many rows. */
export function shortlistNumbers(shape: ShortlistShape, rows: number): number {
  return Object.values(outputColumns(shape)).reduce((sum, columns) => sum + aligned(rows * columns), 0)
}

export class ShortlistOutputs {
  readonly #device: DeviceContext
  readonly #shape: ShortlistShape
  readonly #address: bigint
  readonly #staging: StagingMemory
  readonly #host: Float32Array
  readonly #tensors: OrtTensor[] = []

  constructor(device: DeviceContext, shape: ShortlistShape, maxRows: number) {
    const bytes = 4 * shortlistNumbers(shape, maxRows)
    this.#device = device
    this.#shape = shape
    this.#address = device.allocate(bytes)
    this.#staging = device.staging(bytes)
    this.#host = new Float32Array(this.#staging.bytes.buffer, this.#staging.bytes.byteOffset, bytes / 4)
  }

  /** Of a run of so many rows; bound once. */
  bind(binding: OrtBinding, rows: number): void {
    for (const { name, columns, first } of this.#sections(rows)) {
      const tensor = this.#device.tensor('float32', [rows, columns], this.#address + BigInt(4 * first))
      this.#tensors.push(tensor)
      binding.output(name, tensor)
    }
  }

  /** Their sums are valid until the next call. */
  fetch(rows: number): Shortlist[] {
    this.#device.download(this.#address, 4 * shortlistNumbers(this.#shape, rows), this.#staging)
    const sections = this.#sections(rows)
    return Array.from({ length: rows }, (_, row) => {
      const [listed, logits, best, sums, logitSums] = sections.map(({ first, columns }) =>
        this.#host.subarray(first + row * columns, first + (row + 1) * columns),
      )
      return this.#unpack(listed!, logits!, best![0]!, sums!, logitSums!)
    })
  }

  dispose(): void {
    for (const tensor of this.#tensors.splice(0)) {
      tensor.dispose()
    }
  }

  /** What fills a row up is no token; it comes last where it comes at all. */
  #unpack(
    listed: Float32Array,
    listedLogits: Float32Array,
    best: number,
    sums: Float32Array,
    logitSums: Float32Array,
  ): Shortlist {
    const { vocabSize, spanLength } = this.#shape
    const tokens = new Int32Array(listed.length)
    const logits = new Float32Array(listed.length)
    let count = 0
    for (let i = 0; i < listed.length; i++) {
      if (listed[i]! < vocabSize) {
        tokens[count] = listed[i]!
        logits[count++] = listedLogits[i]!
      }
    }
    let logitSum = 0
    for (let i = 0; i < logitSums.length; i++) {
      logitSum += logitSums[i]!
    }
    return {
      tokens: tokens.subarray(0, count),
      logits: logits.subarray(0, count),
      best,
      sums: sums.subarray(0, Math.ceil(vocabSize / spanLength)),
      logitSum,
    }
  }

  #sections(rows: number): { name: string; columns: number; first: number }[] {
    let first = 0
    return Object.entries(outputColumns(this.#shape)).map(([name, columns]) => {
      const section = { name, columns, first }
      first += aligned(rows * columns)
      return section
    })
  }
}

function aligned(numbers: number): number {
  return Math.ceil(numbers / ALIGNMENT) * ALIGNMENT
}
