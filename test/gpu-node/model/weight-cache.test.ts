import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type CachedWeight, type WeightCacheKey, weightCache } from '../../../gpu-node/model/weight-cache.ts'

const key: WeightCacheKey = { baseDigest: 'ab'.repeat(32), stamp: '100@1', format: 'int8', layout: 'one matrix' }
const weights: CachedWeight[] = [
  { name: 'a.weight', type: 'uint8', shape: [3, 1, 5], data: Uint8Array.from({ length: 15 }, (_, i) => i) },
  { name: 'a.scales', type: 'float32', shape: [3, 1], data: Float32Array.of(0.5, -1, 2) },
  { name: 'norm', type: 'float32', shape: [2], data: Float32Array.of(1, Number.NaN) },
]

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ringlet-weights-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

const theFile = () => join(folder, readdirSync(folder)[0]!)

describe('weights on disk', () => {
  test('come back as they were, whatever their order', async () => {
    await weightCache(folder, key).write(weights)
    const back = await weightCache(folder, key).read()
    const byName = (list: CachedWeight[]) => [...list].sort((a, b) => a.name.localeCompare(b.name))
    expect(byName(back!)).toEqual(byName(weights))
    expect(back!.every(({ data }) => data.buffer instanceof SharedArrayBuffer)).toBe(true)
  })

  test('are missing at first, in a folder that need not exist', async () => {
    const cache = weightCache(join(folder, 'not', 'there'), key)
    expect(await cache.read()).toBeUndefined()
    await cache.write(weights)
    expect(await cache.read()).toHaveLength(3)
  })

  test.each<[string, Partial<WeightCacheKey>]>([
    ['a file of the checkpoint was written again', { stamp: '100@2' }],
    ['the layout is another', { layout: 'two matrices' }],
    ['the format is another', { format: 'int4' }],
    ['the model is another', { baseDigest: `${'ab'.repeat(31)}cd` }],
  ])('do not count when %s, and are replaced', async (_, change) => {
    await weightCache(folder, key).write(weights)
    const other = weightCache(folder, { ...key, ...change })
    expect(await other.read()).toBeUndefined()
    await other.write(weights.slice(0, 1))
    expect(await other.read()).toHaveLength(1)
  })

  test('are not believed when damaged, and the reason is told', async () => {
    const reasons: string[] = []
    const cache = weightCache(folder, key, (why) => reasons.push(why))
    await cache.write(weights)
    const bytes = readFileSync(theFile())
    bytes[bytes.length - 3]! ^= 1
    writeFileSync(theFile(), bytes)
    expect(await cache.read()).toBeUndefined()
    expect(reasons).toEqual([expect.stringMatching(/'a.weight' is damaged/)])
    truncateSync(theFile(), bytes.length - 1)
    expect(await cache.read()).toBeUndefined()
    truncateSync(theFile(), 0)
    expect(await cache.read()).toBeUndefined()
    await cache.write(weights)
    expect(await cache.read()).toHaveLength(3)
  })

  test('leave no half-written file behind when they can not be written', async () => {
    const broken = [{ ...weights[0]!, shape: [4, 4] }]
    await expect(weightCache(folder, key).write(broken)).rejects.toThrow(/is not 15 bytes/)
    expect(readdirSync(folder)).toEqual([])
  })

  test('that can not be kept are only reported', async () => {
    const reasons: string[] = []
    writeFileSync(join(folder, 'file'), '')
    const cache = weightCache(join(folder, 'file', 'below'), key, (why) => reasons.push(why))
    await cache.write(weights)
    expect(reasons).toEqual([expect.stringMatching(/could not be kept for the next start: ENOTDIR/)])
  })

  test('left half-written by a process that died are overwritten', async () => {
    const cache = weightCache(folder, key)
    await cache.write(weights)
    writeFileSync(`${theFile()}.partial`, 'x'.repeat(10_000))
    await cache.write(weights)
    expect(await cache.read()).toHaveLength(3)
    expect(readdirSync(folder)).toHaveLength(1)
  })

  test('written by two nodes at once are whole', async () => {
    await Promise.all([weightCache(folder, key).write(weights), weightCache(folder, key).write(weights)])
    expect(await weightCache(folder, key).read()).toHaveLength(3)
    expect(readdirSync(folder)).toHaveLength(1)
  })
})
