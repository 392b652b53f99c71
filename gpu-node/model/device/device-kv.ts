/**
 * The KV cache on a device: `[maxRows, kvHeads, maxPositions, headSize]` for keys and values of each layer. Parts of rows are copied
 * as they lie: a run that did it would need a row's size of workspace several times over.
 */

import { RingletError } from '../../../shared/errors.ts'
import type { KvRange, KvSnapshot } from '../../engine/engine-types.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import { kvNames } from '../graph/graph-names.ts'
import type { DeviceContext } from './device-context.ts'
import { FLOAT_BYTES } from './device-form.ts'
import type { DeviceModel } from './device-graph.ts'

/** Bytes of one row: all layers, keys and values. */
export function kvRowBytes({ decoder, floats }: Pick<DeviceModel, 'decoder' | 'floats'>, maxPositions: number): number {
  return 2 * decoder.layers.length * decoder.kvHeads * maxPositions * decoder.headSize * FLOAT_BYTES[floats]
}

export class DeviceKv {
  readonly #device: DeviceContext
  readonly #model: DeviceModel
  readonly #maxRows: number
  readonly #maxPositions: number
  /** Keys and values of layer i at 2i and 2i + 1. */
  readonly #addresses: bigint[]
  /** By `first:count`. */
  readonly #ranges = new Map<string, OrtTensor[]>()

  constructor(device: DeviceContext, model: DeviceModel, maxRows: number, maxPositions: number) {
    this.#device = device
    this.#model = model
    this.#maxRows = maxRows
    this.#maxPositions = maxPositions
    const arrays = 2 * model.decoder.layers.length
    // Cleared: what lies behind a row's end has no weight, but times infinity even that would count.
    this.#addresses = Array.from({ length: arrays }, () => {
      const address = device.allocate(maxRows * this.#rowBytes)
      device.clear(address, maxRows * this.#rowBytes)
      return address
    })
  }

  /** Binds rows `first … first + count - 1` as past and present of every layer. */
  bind(binding: OrtBinding, first: number, count: number): void {
    const tensors = this.#range(first, count)
    for (const layer of this.#model.decoder.layers.keys()) {
      const names = kvNames(layer)
      binding.input(names.pastKey, tensors[2 * layer]!)
      binding.input(names.pastValue, tensors[2 * layer + 1]!)
      binding.output(names.presentKey, tensors[2 * layer]!)
      binding.output(names.presentValue, tensors[2 * layer + 1]!)
    }
  }

  /** Numbers of `positions` positions, in the device's floats; halves two to a float. Layout: by array, by head. */
  save({ kvRow, start, end }: KvRange): KvSnapshot {
    this.#check(kvRow, end)
    const width = (end - start) * this.#positionBytes
    const bytes = this.#arrayBytes(end - start)
    const data = new Float32Array(Math.ceil((this.#addresses.length * bytes) / 4))
    if (end > start) {
      this.#device.copy((stream) => {
        for (const [i, address] of this.#addresses.entries()) {
          const to = new Uint8Array(data.buffer, i * bytes, bytes)
          const rows = { width, rows: this.#heads, fromPitch: this.#headBytes, toPitch: width }
          stream.downRows(this.#place(address, kvRow, start), to, rows)
        }
      })
    }
    return { start, end, bytes: data.byteLength, data }
  }

  /** Positions `[snapshot.start, end)`. */
  restore(row: number, snapshot: KvSnapshot, end: number): void {
    this.#check(row, end)
    const { start, data } = snapshot
    if (end > snapshot.end || end < start) {
      const has = `[${start}, ${snapshot.end})`
      throw new RingletError('internal', `positions up to ${end} are asked of a snapshot of ${has}`)
    }
    if (end === start) {
      return
    }
    const width = (end - start) * this.#positionBytes
    const fromPitch = (snapshot.end - start) * this.#positionBytes
    const bytes = this.#arrayBytes(snapshot.end - start)
    this.#device.copy((stream) => {
      for (const [i, address] of this.#addresses.entries()) {
        const from = new Uint8Array(data.buffer, data.byteOffset + i * bytes, bytes)
        const rows = { width, rows: this.#heads, fromPitch, toPitch: this.#headBytes }
        stream.upRows(from, this.#place(address, row, start), rows)
      }
    })
  }

  copyRow(from: number, to: number, positions: number): void {
    this.#check(from, positions)
    this.#check(to, positions)
    if (positions === 0 || from === to) {
      return
    }
    const pitch = this.#headBytes
    const rows = { width: positions * this.#positionBytes, rows: this.#heads, fromPitch: pitch, toPitch: pitch }
    this.#device.copy((stream) => {
      for (const address of this.#addresses) {
        stream.acrossRows(this.#place(address, from, 0), this.#place(address, to, 0), rows)
      }
    })
  }

  dispose(): void {
    for (const tensor of [...this.#ranges.values()].flat()) {
      tensor.dispose()
    }
    this.#ranges.clear()
  }

  get #rowBytes(): number {
    return this.#heads * this.#headBytes
  }

  get #heads(): number {
    return this.#model.decoder.kvHeads
  }

  /** Of all positions of one head. */
  get #headBytes(): number {
    return this.#maxPositions * this.#positionBytes
  }

  get #positionBytes(): number {
    return this.#model.decoder.headSize * FLOAT_BYTES[this.#model.floats]
  }

  /** Of so many positions of one array. */
  #arrayBytes(positions: number): number {
    return this.#heads * positions * this.#positionBytes
  }

  /** Of a row's first head. */
  #place(address: bigint, row: number, position: number): bigint {
    return address + BigInt(row * this.#rowBytes + position * this.#positionBytes)
  }

  #range(first: number, count: number): OrtTensor[] {
    const key = `${first}:${count}`
    const known = this.#ranges.get(key)
    if (known !== undefined) {
      return known
    }
    const { kvHeads, headSize } = this.#model.decoder
    const shape = [count, kvHeads, this.#maxPositions, headSize]
    const tensors = this.#addresses.map((address) =>
      this.#device.tensor(this.#model.floats, shape, this.#place(address, first, 0)),
    )
    this.#ranges.set(key, tensors)
    return tensors
  }

  #check(row: number, positions: number): void {
    if (row < 0 || row >= this.#maxRows || positions < 0 || positions > this.#maxPositions) {
      const limits = `${this.#maxRows} rows of ${this.#maxPositions} positions`
      throw new RingletError('internal', `row ${row}, ${positions} positions: the KV cache has ${limits}`)
    }
  }
}
