/** A shortlist run's outputs: one piece of memory on the device, so that they come down in one copy, and what they say by row. */

import type { Shortlist } from '../../engine/engine-types.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import type { DeviceContext, StagingMemory } from './device-context.ts'
import { BEST, LISTED, LISTED_LOGITS, LOGIT_SUMS, outputColumns, type ShortlistShape, SUMS } from './shortlist-graph.ts'

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

  fetch(rows: number): Shortlist[] {
    this.#device.download(this.#address, 4 * shortlistNumbers(this.#shape, rows), this.#staging)
    const sections = new Map(this.#sections(rows).map((section) => [section.name, section]))
    return Array.from({ length: rows }, (_, row) =>
      this.#unpack((name) => {
        const { first, columns } = sections.get(name)!
        return this.#host.slice(first + row * columns, first + (row + 1) * columns)
      }),
    )
  }

  dispose(): void {
    for (const tensor of this.#tensors.splice(0)) {
      tensor.dispose()
    }
  }

  /** What fills a row up is no token, and comes last where it comes at all. */
  #unpack(numbers: (name: string) => Float32Array): Shortlist {
    const { vocabSize, spanLength } = this.#shape
    const listed = numbers(LISTED)
    const logits = numbers(LISTED_LOGITS)
    const places = [...listed.keys()].filter((at) => listed[at]! < vocabSize)
    return {
      tokens: Int32Array.from(places, (at) => listed[at]!),
      logits: Float32Array.from(places, (at) => logits[at]!),
      best: numbers(BEST)[0]!,
      sums: numbers(SUMS).slice(0, Math.ceil(vocabSize / spanLength)),
      logitSum: numbers(LOGIT_SUMS).reduce((sum, value) => sum + value, 0),
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
