/** The KV cache of GroupQueryAttention: one key and one value array a layer, `[maxRows, kvHeads, maxPositions, headSize]`. */

import { RingletError } from '../../../shared/errors.ts'
import type { KvRange, KvSnapshot } from '../../engine/engine-types.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import { kvNames } from '../graph/graph-names.ts'

interface RowRange {
  keys: OrtTensor[]
  values: OrtTensor[]
}

/** What the runner needs of a cache. */
export interface KvCache {
  readonly bytes: number
  /** For runs over rows `first … first + count - 1`. */
  bind(binding: OrtBinding, first: number, count: number): void
  copyRow(from: number, to: number, positions: number): void
  save(range: KvRange): KvSnapshot
  restore(row: number, snapshot: KvSnapshot, end: number): void
  dispose(): void
}

export class GroupQueryKvCache implements KvCache {
  readonly maxRows: number
  readonly maxPositions: number
  readonly bytes: number
  readonly #environment: OrtEnvironment
  readonly #kvHeads: number
  readonly #headSize: number
  readonly #names: ReturnType<typeof kvNames>[]
  /** Keys and values of layer i at 2i and 2i + 1. Untouched pages of a SharedArrayBuffer take no memory. */
  readonly #arrays: Float32Array[]
  /** By `first:count`; made when first used. */
  readonly #ranges = new Map<string, RowRange>()

  constructor(environment: OrtEnvironment, decoder: DecoderSpec, maxRows: number, maxPositions: number) {
    this.maxRows = maxRows
    this.maxPositions = maxPositions
    this.#environment = environment
    this.#kvHeads = decoder.kvHeads
    this.#headSize = decoder.headSize
    this.#names = decoder.layers.map((_, layer) => kvNames(layer))
    const arrayBytes = maxRows * this.#rowElements * 4
    this.#arrays = Array.from(
      { length: 2 * decoder.layers.length },
      () => new Float32Array(new SharedArrayBuffer(arrayBytes)),
    )
    this.bytes = arrayBytes * this.#arrays.length
  }

  /** Binds rows `first … first + count - 1` as past and present of every layer. */
  bind(binding: OrtBinding, first: number, count: number): void {
    const { keys, values } = this.#range(first, count)
    for (const [layer, names] of this.#names.entries()) {
      binding.input(names.pastKey, keys[layer]!)
      binding.input(names.pastValue, values[layer]!)
      binding.output(names.presentKey, keys[layer]!)
      binding.output(names.presentValue, values[layer]!)
    }
  }

  copyRow(from: number, to: number, positions: number): void {
    checkRange(this, from, positions)
    checkRange(this, to, positions)
    const used = positions * this.#headSize
    for (const array of this.#arrays) {
      for (let head = 0; head < this.#kvHeads; head++) {
        const start = this.#offset(from, head)
        array.copyWithin(this.#offset(to, head), start, start + used)
      }
    }
  }

  /** Layout: by array, by head, `[end - start, headSize]`. */
  save({ kvRow, start, end }: KvRange): KvSnapshot {
    checkRange(this, kvRow, end)
    const used = (end - start) * this.#headSize
    const data = new Float32Array(this.#arrays.length * this.#kvHeads * used)
    let at = 0
    for (const array of this.#arrays) {
      for (let head = 0; head < this.#kvHeads; head++) {
        const from = this.#offset(kvRow, head) + start * this.#headSize
        data.set(array.subarray(from, from + used), at)
        at += used
      }
    }
    return { start, end, bytes: data.byteLength, data }
  }

  /** Positions `[snapshot.start, end)`. */
  restore(row: number, snapshot: KvSnapshot, end: number): void {
    checkRange(this, row, end)
    checkSnapshot(snapshot, end)
    const used = (end - snapshot.start) * this.#headSize
    const stride = (snapshot.end - snapshot.start) * this.#headSize
    let at = 0
    for (const array of this.#arrays) {
      for (let head = 0; head < this.#kvHeads; head++) {
        array.set(snapshot.data.subarray(at, at + used), this.#offset(row, head) + snapshot.start * this.#headSize)
        at += stride
      }
    }
  }

  dispose(): void {
    for (const { keys, values } of this.#ranges.values()) {
      for (const tensor of [...keys, ...values]) {
        tensor.dispose()
      }
    }
    this.#ranges.clear()
  }

  get #rowElements(): number {
    return this.#kvHeads * this.maxPositions * this.#headSize
  }

  #offset(row: number, head: number): number {
    return (row * this.#kvHeads + head) * this.maxPositions * this.#headSize
  }

  #range(first: number, count: number): RowRange {
    const key = `${first}:${count}`
    const known = this.#ranges.get(key)
    if (known !== undefined) {
      return known
    }
    const shape = [count, this.#kvHeads, this.maxPositions, this.#headSize]
    const start = this.#offset(first, 0)
    const tensors = this.#arrays.map(
      (array) => new OrtTensor(this.#environment, 'float32', shape, array.subarray(start)),
    )
    const range = {
      keys: tensors.filter((_, i) => i % 2 === 0),
      values: tensors.filter((_, i) => i % 2 === 1),
    }
    this.#ranges.set(key, range)
    return range
  }
}

export function checkRange(
  { maxRows, maxPositions }: { maxRows: number; maxPositions: number },
  row: number,
  positions: number,
): void {
  if (row < 0 || row >= maxRows || positions < 0 || positions > maxPositions) {
    const limits = `${maxRows} rows of ${maxPositions} positions`
    throw new RingletError('internal', `row ${row}, ${positions} positions: the KV cache has ${limits}`)
  }
}

export function checkSnapshot(snapshot: KvSnapshot, end: number): void {
  if (end > snapshot.end || end < snapshot.start) {
    const has = `[${snapshot.start}, ${snapshot.end})`
    throw new RingletError('internal', `positions up to ${end} are asked of a snapshot of ${has}`)
  }
}
