import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { FLOAT_BYTES, type FloatDtype, widenFloats } from '../../../gpu-node/formats/float16.ts'
import { allocateQuantised, quantiseRows } from '../../../gpu-node/model/quantise.ts'
import { makeMatrices } from '../../../gpu-node/model/runner/make-matrices.ts'
import type { MatrixPlace, MatrixWork } from '../../../gpu-node/model/runner/matrix-rows.ts'
import { tiledBytes, tileMatrix } from '../../../gpu-node/ort/linear-kernel/linear-layout.ts'
import { normals } from '../../support/normals.ts'

/** A header that leaves the numbers at an odd place, and three modules whose rows are no multiples of a tile. */
const BEFORE = 13
const PARTS = [1500, 37, 63]
const ROWS = 1600
const COLUMNS = 320
const shared = (bytes: number) => new Uint8Array(new SharedArrayBuffer(bytes))

let folder: string
let fd: number
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ringlet-matrices-'))
})
afterEach(() => {
  closeSync(fd)
  rmSync(folder, { recursive: true })
})

/** Random numbers in that format, and what they are in float32. */
function write(dtype: FloatDtype): { values: Float32Array; parts: MatrixWork['parts'] } {
  const size = FLOAT_BYTES[dtype]
  const floats = normals(ROWS * COLUMNS, 5)
  const words = new Uint32Array(floats.buffer)
  const bytes = {
    F32: () => new Uint8Array(floats.buffer),
    BF16: () => new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer),
    // Of halves any bits below infinity are a number.
    F16: () => new Uint8Array(Uint16Array.from(words, (word) => word & 0xbbff).buffer),
  }[dtype as 'F32' | 'BF16' | 'F16']()
  const path = join(folder, 'weights')
  writeFileSync(path, Buffer.concat([Buffer.alloc(BEFORE, 0xff), bytes]))
  fd = openSync(path, 'r')
  const values = new Float32Array(ROWS * COLUMNS)
  widenFloats(dtype, bytes, values)
  let row = 0
  const parts = PARTS.map((rows) => {
    const position = BEFORE + row * COLUMNS * size
    row += rows
    return { fd, position, dtype, rows }
  })
  return { values, parts }
}

function places(): Record<'floats' | 'int8' | 'int4' | 'tiles', MatrixPlace> {
  return {
    floats: { kind: 'floats', values: new Float32Array(new SharedArrayBuffer(4 * ROWS * COLUMNS)) },
    int8: { kind: 'blocks', matrix: allocateQuantised(ROWS, COLUMNS, 8) },
    int4: { kind: 'blocks', matrix: allocateQuantised(ROWS, COLUMNS, 4) },
    tiles: { kind: 'tiles', tiles: shared(tiledBytes(COLUMNS, ROWS)) },
  }
}

function atOnce(values: Float32Array): Record<'floats' | 'int8' | 'int4' | 'tiles', MatrixPlace> {
  const quantised = ([8, 4] as const).map((bits) => {
    const matrix = allocateQuantised(ROWS, COLUMNS, bits)
    quantiseRows(matrix, 0, values)
    return matrix
  })
  const [int8, int4] = [quantised[0]!, quantised[1]!]
  return {
    floats: { kind: 'floats', values },
    int8: { kind: 'blocks', matrix: int8 },
    int4: { kind: 'blocks', matrix: int4 },
    tiles: { kind: 'tiles', tiles: tileMatrix(COLUMNS, ROWS, int8.weight, int8.scales) },
  }
}

const bytesOf = ({ buffer, byteOffset, byteLength }: NodeJS.TypedArray) => Buffer.from(buffer, byteOffset, byteLength)

function arraysOf(place: MatrixPlace): Buffer[] {
  switch (place.kind) {
    case 'floats':
      return [bytesOf(place.values)]
    case 'blocks': {
      const { weight, scales, zeroPoints } = place.matrix
      return [weight, scales, ...(zeroPoints === undefined ? [] : [zeroPoints])].map(bytesOf)
    }
    case 'tiles':
      return [bytesOf(place.tiles)]
    case 'stored':
      return [bytesOf(place.bytes)]
  }
}

describe('matrices made by several threads', () => {
  test.each<[FloatDtype, number, number]>([
    ['BF16', 1, 3],
    ['F16', 1, 2],
    ['F32', 1, 1],
    ['BF16', 0.3, 2],
  ])('equal those made at once, bit for bit: from %s, times %d, by %d threads', async (dtype, multiplier, threads) => {
    const { values, parts } = write(dtype)
    const made = places()
    const works = Object.values(made).map((place) => ({ parts, rows: ROWS, columns: COLUMNS, multiplier, place }))
    await makeMatrices(works, () => {}, threads)
    const expected = atOnce(multiplier === 1 ? values : values.map((value) => value * multiplier))
    for (const [i, place] of Object.values(made).entries()) {
      const wanted = arraysOf(Object.values(expected)[i]!)
      expect(arraysOf(place).map((bytes, k) => bytes.equals(wanted[k]!))).toEqual(wanted.map(() => true))
    }
  })

  test('copy what stays as it is stored', async () => {
    const { values, parts } = write('BF16')
    const bytes = shared(2 * PARTS[0]! * COLUMNS)
    const work = { rows: PARTS[0]!, columns: COLUMNS, multiplier: 1, place: { kind: 'stored', bytes } } as const
    await makeMatrices([{ ...work, parts: parts.slice(0, 1) }], () => {}, 2)
    const widened = new Float32Array(PARTS[0]! * COLUMNS)
    widenFloats('BF16', bytes, widened)
    expect(bytesOf(widened).equals(bytesOf(values.subarray(0, widened.length)))).toBe(true)
  })

  test('fail as one where a file ends too soon, and no thread goes on', async () => {
    const { parts } = write('BF16')
    const beyond = parts.map((part) => ({ ...part, position: part.position + 1000 }))
    const place = places().int8
    const works = [{ parts: beyond, rows: ROWS, columns: COLUMNS, multiplier: 1, place }]
    await expect(makeMatrices(works, () => {}, 3)).rejects.toThrow('a weight file was cut while it was being read')
  })

  test('tell how far they are', async () => {
    const { parts } = write('BF16')
    const seen: number[] = []
    const works = [{ parts, rows: ROWS, columns: COLUMNS, multiplier: 1, place: places().int8 }]
    await makeMatrices(works, (done, total) => seen.push(done / total), 1)
    expect(seen.at(-1)).toBe(1)
  })
})
