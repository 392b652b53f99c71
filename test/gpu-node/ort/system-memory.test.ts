import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { HUGE_PAGE_BYTES, HugeArena, mapFile } from '../../../gpu-node/ort/system-memory.ts'

const linux = process.platform === 'linux'

describe.runIf(linux)('a mapped file', () => {
  const BOUNDARY = 8192
  const size = BOUNDARY + 3 * HUGE_PAGE_BYTES + 100
  const bytes = Buffer.from(Uint8Array.from({ length: size }, (_, i) => (i * 31) >> 5))
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'ringlet-map-'))
    writeFileSync(join(folder, 'file'), bytes)
  })
  afterEach(() => rmSync(folder, { recursive: true }))

  const open = () => {
    const fd = openSync(join(folder, 'file'), 'r')
    const file = mapFile(fd, size, BOUNDARY)!
    closeSync(fd)
    return file
  }

  test('reads as the file, whether brought in at once or page by page, and after its memory was given back', () => {
    const file = open()
    file.populate(0, BOUNDARY + HUGE_PAGE_BYTES)
    file.expect(4096, size - 4096)
    expect(bytes.equals(file.view(0, size))).toBe(true)
    file.forget(BOUNDARY, 2 * HUGE_PAGE_BYTES)
    expect(bytes.equals(file.view(0, size))).toBe(true)
    expect(bytes.subarray(77, 1077).equals(file.view(77, 1000))).toBe(true)
    file.dispose()
  })

  test('keeps its bytes at their addresses when pages become private; the file may go', () => {
    const file = open()
    const view = file.view(0, size)
    file.makePrivate(BOUNDARY + HUGE_PAGE_BYTES)
    file.makePrivate(BOUNDARY)
    rmSync(join(folder, 'file'))
    expect(bytes.equals(view)).toBe(true)
    file.dispose()
  })
})

describe('an arena', () => {
  test('gives arrays of their own that threads can share, aligned, small ones and such as need more than a slab', () => {
    const arena = new HugeArena()
    const sizes = [1, 63, 64, 65, 0, 70_000_000, 5_000_000, 7]
    const arrays = sizes.map((size) => arena.take(size))
    expect(arrays.map((array) => array.byteLength)).toEqual(sizes)
    for (const [i, array] of arrays.entries()) {
      array.fill(i + 1)
    }
    expect(arrays.every((array, i) => array.every((value) => value === i + 1))).toBe(true)
    expect(arrays.every(({ buffer }) => buffer instanceof SharedArrayBuffer)).toBe(true)
    expect(new Float32Array(arrays[3]!.buffer, arrays[3]!.byteOffset, 16).every((value) => value !== 0)).toBe(true)
  })
})
