/** The KV cache of our own attention kernel: layouts of attention-layout.ts, keys in blocks of sixteen positions. */

import type { KvRange, KvSnapshot } from '../../engine/engine-types.ts'
import { BLOCK_POSITIONS } from '../../ort/attention-kernel/attention-layout.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import type { KernelKv } from '../graph/graph-form.ts'
import { kvNames } from '../graph/graph-names.ts'
import { checkRange, checkSnapshot, type KvCache } from './kv-cache.ts'

type Elements = Float32Array | Uint16Array

export class KernelKvCache implements KvCache {
  readonly maxRows: number
  readonly maxPositions: number
  readonly bytes: number
  readonly #kv: KernelKv
  readonly #kvHeads: number
  readonly #headSize: number
  /** By layer. Untouched pages of a SharedArrayBuffer take no memory. */
  readonly #keys: Elements[]
  readonly #values: Elements[]
  readonly #tensors: { name: string; tensor: OrtTensor }[]

  constructor(environment: OrtEnvironment, decoder: DecoderSpec, kv: KernelKv, maxRows: number) {
    const { kvHeads, headSize } = decoder
    this.maxRows = maxRows
    this.maxPositions = kv.positions
    this.#kv = kv
    this.#kvHeads = kvHeads
    this.#headSize = headSize
    const length = maxRows * kvHeads * kv.positions * headSize
    const allocate = (): Elements[] => decoder.layers.map(() => allocateElements(kv, length))
    this.#keys = allocate()
    this.#values = allocate()
    const type = kv.format === 'f32' ? 'float32' : 'float16'
    this.#tensors = decoder.layers.flatMap((_, layer) => {
      const { pastKey, pastValue } = kvNames(layer)
      return [
        { name: pastKey, tensor: new OrtTensor(environment, type, [length], this.#keys[layer]!) },
        { name: pastValue, tensor: new OrtTensor(environment, type, [length], this.#values[layer]!) },
      ]
    })
    this.bytes = [...this.#keys, ...this.#values].reduce((sum, array) => sum + array.byteLength, 0)
  }

  /** Always the whole: the step's tokens name their rows. */
  bind(binding: OrtBinding): void {
    for (const { name, tensor } of this.#tensors) {
      binding.input(name, tensor)
    }
  }

  /** Whole blocks of keys: what lies behind `positions` is written again before it is read. */
  copyRow(from: number, to: number, positions: number): void {
    checkRange(this, from, positions)
    checkRange(this, to, positions)
    const copy = (arrays: readonly Elements[], count: number): void => {
      for (const array of arrays) {
        for (let head = 0; head < this.#kvHeads; head++) {
          const start = this.#offset(from, head)
          array.copyWithin(this.#offset(to, head), start, start + count * this.#headSize)
        }
      }
    }
    copy(this.#keys, blocksEnd(positions))
    copy(this.#values, positions)
  }

  /** Layout: by layer, by head: whole blocks of keys, then the values of exactly these positions. */
  save({ kvRow, start, end }: KvRange): KvSnapshot {
    checkRange(this, kvRow, end)
    const { keys, values } = this.#sizes(start, end)
    const size = this.#keys.length * this.#kvHeads * (keys + values)
    const data = new Float32Array(Math.ceil((size * this.#elementBytes) / 4))
    const out = this.#view(data)
    let at = 0
    const take = (array: Elements, from: number, length: number): void => {
      out.set(array.subarray(from, from + length), at)
      at += length
    }
    this.#eachHead(kvRow, (layer, offset) => {
      take(this.#keys[layer]!, offset + blocksStart(start) * this.#headSize, keys)
      take(this.#values[layer]!, offset + start * this.#headSize, values)
    })
    return { start, end, bytes: data.byteLength, data }
  }

  /** Positions `[snapshot.start, end)`; those before it in their block stay. */
  restore(row: number, snapshot: KvSnapshot, end: number): void {
    checkRange(this, row, end)
    checkSnapshot(snapshot, end)
    const { start } = snapshot
    if (end === start) {
      return
    }
    const stored = this.#sizes(start, snapshot.end)
    const wanted = this.#sizes(start, end)
    const data = this.#view(snapshot.data)
    let at = 0
    this.#eachHead(row, (layer, offset) => {
      this.#restoreKeys(this.#keys[layer]!, offset, start, data.subarray(at, at + wanted.keys))
      at += stored.keys
      this.#values[layer]!.set(data.subarray(at, at + wanted.values), offset + start * this.#headSize)
      at += stored.values
    })
  }

  dispose(): void {
    for (const { tensor } of this.#tensors) {
      tensor.dispose()
    }
  }

  #restoreKeys(keys: Elements, offset: number, start: number, blocks: Elements): void {
    const place = offset + blocksStart(start) * this.#headSize
    const kept = start % BLOCK_POSITIONS
    const blockElements = BLOCK_POSITIONS * this.#headSize
    if (kept === 0) {
      keys.set(blocks, place)
      return
    }
    for (let row = 0; row < blockElements; row += BLOCK_POSITIONS) {
      keys.set(blocks.subarray(row + kept, row + BLOCK_POSITIONS), place + row + kept)
    }
    keys.set(blocks.subarray(blockElements), place + blockElements)
  }

  /** Elements of a head in a snapshot of `[start, end)`. */
  #sizes(start: number, end: number): { keys: number; values: number } {
    const blocks = end === start ? 0 : blocksEnd(end) - blocksStart(start)
    return { keys: blocks * this.#headSize, values: (end - start) * this.#headSize }
  }

  #eachHead(row: number, visit: (layer: number, offset: number) => void): void {
    for (let layer = 0; layer < this.#keys.length; layer++) {
      for (let head = 0; head < this.#kvHeads; head++) {
        visit(layer, this.#offset(row, head))
      }
    }
  }

  #offset(row: number, head: number): number {
    return (row * this.#kvHeads + head) * this.maxPositions * this.#headSize
  }

  get #elementBytes(): number {
    return this.#kv.format === 'f32' ? 4 : 2
  }

  #view(data: Float32Array): Elements {
    return this.#kv.format === 'f32' ? data : new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2)
  }
}

/** The end of the block in which the last of `positions` positions lies. */
export function blocksEnd(positions: number): number {
  return Math.ceil(positions / BLOCK_POSITIONS) * BLOCK_POSITIONS
}

function blocksStart(position: number): number {
  return position - (position % BLOCK_POSITIONS)
}

function allocateElements(kv: KernelKv, length: number): Elements {
  return kv.format === 'f32'
    ? new Float32Array(new SharedArrayBuffer(length * 4))
    : new Uint16Array(new SharedArrayBuffer(length * 2))
}
