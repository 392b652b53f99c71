/**
 * The rows of the graph's matrices, from where their numbers are stored to where the graph reads them: what there is to do, and
 * doing some of it. Any thread can, as files and places are the process's.
 */

import { readSync } from 'node:fs'
import { FLOAT_BYTES, widenFloats } from '../../formats/float16.ts'
import { SafetensorsError } from '../../formats/safetensors.ts'
import { TILE_BLOCK_BYTES, TILE_OUTPUTS, tileRows } from '../../ort/linear-kernel/linear-layout.ts'
import { allocateQuantised, QUANTISED_BLOCK, type QuantisedMatrix, quantiseRows } from '../quantise.ts'
import type { StoredNumbers } from '../weight-files.ts'

/** A module's rows, in the order of the matrix's. */
export interface StoredRows extends StoredNumbers {
  rows: number
}

/** Where a matrix is to be and how; in memory that threads share. */
export type MatrixPlace =
  | { kind: 'floats'; values: Float32Array }
  | { kind: 'blocks'; matrix: QuantisedMatrix }
  | { kind: 'tiles'; tiles: Uint8Array }
  | { kind: 'stored'; bytes: Uint8Array }

export interface MatrixWork {
  parts: readonly StoredRows[]
  rows: number
  columns: number
  multiplier: number
  place: MatrixPlace
}

/** Numbers of one share: what is read, made and written of it stays in a core's cache. */
const SHARE_NUMBERS = 1 << 17

/** Whole tiles. */
function rowsOfShare({ columns }: MatrixWork): number {
  return Math.max(1, Math.floor(SHARE_NUMBERS / columns / TILE_OUTPUTS)) * TILE_OUTPUTS
}

export function countShares(works: readonly MatrixWork[]): number {
  return works.reduce((sum, work) => sum + Math.ceil(work.rows / rowsOfShare(work)), 0)
}

/** Shares are numbered through; each is taken by one thread, which asks for ever higher ones. */
export class RowMaker {
  readonly #works: readonly MatrixWork[]
  #at = 0
  /** Of the work at `#at`. */
  #firstShare = 0
  #bytes = new Uint8Array(0)
  #values = new Float32Array(0)
  #scratch: QuantisedMatrix | undefined

  constructor(works: readonly MatrixWork[]) {
    this.#works = works
  }

  make(share: number): void {
    for (;;) {
      const work = this.#works[this.#at]!
      const rows = rowsOfShare(work)
      const first = (share - this.#firstShare) * rows
      if (first < work.rows) {
        this.#makeRows(work, first, Math.min(rows, work.rows - first))
        return
      }
      this.#firstShare += Math.ceil(work.rows / rows)
      this.#at++
    }
  }

  #makeRows(work: MatrixWork, first: number, rows: number): void {
    const { columns, place } = work
    switch (place.kind) {
      case 'stored':
        copyStored(work, place.bytes, first, rows)
        break
      case 'floats':
        place.values.set(this.#read(work, first, rows), first * columns)
        break
      case 'blocks':
        quantiseRows(place.matrix, first, this.#read(work, first, rows))
        break
      case 'tiles': {
        const scratch = this.#scratchOf(rowsOfShare(work), columns)
        quantiseRows(scratch, 0, this.#read(work, first, rows))
        const rowBytes = ((columns / QUANTISED_BLOCK) * TILE_BLOCK_BYTES) / TILE_OUTPUTS
        const tiles = place.tiles.subarray(first * rowBytes, (first + rows) * rowBytes)
        tileRows(columns, rows, scratch.weight, scratch.scales, tiles)
      }
    }
  }

  #scratchOf(rows: number, columns: number): QuantisedMatrix {
    if (this.#scratch?.rows !== rows || this.#scratch.columns !== columns) {
      this.#scratch = allocateQuantised(rows, columns, 8)
    }
    return this.#scratch
  }

  /** Widened and multiplied; valid until the next call. */
  #read({ parts, columns, multiplier }: MatrixWork, first: number, rows: number): Float32Array {
    if (this.#values.length < rows * columns) {
      this.#values = new Float32Array(rows * columns)
    }
    let partRow = 0
    for (const part of parts) {
      const from = Math.max(first, partRow)
      const to = Math.min(first + rows, partRow + part.rows)
      if (from < to) {
        const out = this.#values.subarray((from - first) * columns, (to - first) * columns)
        this.#readNumbers(part, (from - partRow) * columns, out)
      }
      partRow += part.rows
    }
    const values = this.#values.subarray(0, rows * columns)
    for (let i = 0; multiplier !== 1 && i < values.length; i++) {
      values[i]! *= multiplier
    }
    return values
  }

  #readNumbers(part: StoredNumbers, first: number, out: Float32Array): void {
    const size = FLOAT_BYTES[part.dtype]
    if (this.#bytes.length < out.length * size) {
      this.#bytes = new Uint8Array(out.length * size)
    }
    const bytes = this.#bytes.subarray(0, out.length * size)
    readFully(part.fd, part.position + first * size, bytes)
    widenFloats(part.dtype, bytes, out)
  }
}

/** As it is: of one part, unmultiplied. */
function copyStored({ parts, columns }: MatrixWork, bytes: Uint8Array, first: number, rows: number): void {
  const { fd, position, dtype } = parts[0]!
  const rowBytes = columns * FLOAT_BYTES[dtype]
  readFully(fd, position + first * rowBytes, bytes.subarray(first * rowBytes, (first + rows) * rowBytes))
}

function readFully(fd: number, position: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(fd, bytes, done, bytes.length - done, position + done)
    if (read === 0) {
      throw new SafetensorsError('a weight file was cut while it was being read')
    }
    done += read
  }
}
