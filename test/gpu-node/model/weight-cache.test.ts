import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  type CachedWeight,
  type KeptWeights,
  type WeightCacheKey,
  type WeightMaker,
  weightCache,
} from '../../../gpu-node/model/weight-cache.ts'

const key: WeightCacheKey = { baseDigest: 'ab'.repeat(32), stamp: '100@1', format: 'int8', layout: 'one matrix' }
/** Three pieces, the last of them rare; sizes that leave the next tensor at an odd address but for the pads. */
const weights: CachedWeight[] = [
  { name: 'a.weight', type: 'uint8', shape: [3, 1, 5], data: Uint8Array.from({ length: 15 }, (_, i) => i) },
  { name: 'a.scales', type: 'float32', shape: [3, 1], data: Float32Array.of(0.5, -1, 2) },
  { name: 'norm', type: 'float32', shape: [2], data: Float32Array.of(1, Number.NaN) },
  { name: 'large', type: 'float32', shape: [900_001], data: Float32Array.from({ length: 900_001 }, (_, i) => i) },
  { name: 'table', type: 'bfloat16', shape: [999, 1001], data: Uint16Array.from({ length: 999_999 }, (_, i) => i) },
]
const maker: WeightMaker = makerOf(weights)

function makerOf(list: readonly CachedWeight[]): WeightMaker {
  return {
    count: list.length,
    rare: 'table',
    make: async (keep) => {
      for (const weight of list) {
        await keep(weight)
      }
    },
  }
}

/** Their bytes by their hash: millions of numbers are slow to compare one by one. */
function content(list: readonly CachedWeight[]): object[] {
  return list.map(({ name, type, shape, data }) => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    return { name, type, shape, kind: data.constructor.name, hash: createHash('sha256').update(bytes).digest('hex') }
  })
}

function settle(kept: KeptWeights): number {
  let pieces = 1
  while (kept.settle()) {
    pieces++
  }
  return pieces
}

let folder: string
const open: KeptWeights[] = []
const kept = (result: KeptWeights | undefined): KeptWeights => {
  expect(result).toBeDefined()
  open.push(result!)
  return result!
}
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ringlet-weights-'))
})
afterEach(() => {
  for (const one of open.splice(0)) {
    one.dispose()
  }
  rmSync(folder, { recursive: true })
})

const theFile = () => join(folder, readdirSync(folder)[0]!)
const unmapped = (onMiss?: (why: string) => void) => weightCache(folder, key, onMiss, () => undefined)

describe('weights on disk', () => {
  test('come back as they were, before every piece is compared and after', async () => {
    expect(content(kept(await weightCache(folder, key).write(maker)).weights)).toEqual(content(weights))
    const back = kept(await weightCache(folder, key).read())
    expect(content(back.weights)).toEqual(content(weights))
    expect(back.weights.every(({ data }) => data.byteOffset % 64 === 0)).toBe(true)
    expect(settle(back)).toBe(3)
    expect(content(back.weights)).toEqual(content(weights))
    expect(back.settle()).toBe(false)
  })

  test('are read into arrays where files can not be mapped', async () => {
    await weightCache(folder, key).write(maker)
    const back = kept(await unmapped().read())
    expect(content(back.weights)).toEqual(content(weights))
    expect(back.settle()).toBe(false)
  })

  test('stay readable when the file is replaced', async () => {
    const before = kept(await weightCache(folder, key).write(maker))
    await weightCache(folder, { ...key, stamp: '100@2' }).write(makerOf(weights.slice(0, 1)))
    expect(content(before.weights)).toEqual(content(weights))
    expect(settle(before)).toBe(3)
    expect(content(before.weights)).toEqual(content(weights))
  })

  test('are missing at first, in a folder that need not exist', async () => {
    const cache = weightCache(join(folder, 'not', 'there'), key)
    expect(await cache.read()).toBeUndefined()
    await cache.write(maker)
    expect(kept(await cache.read()).weights).toHaveLength(5)
  })

  test.each<[string, Partial<WeightCacheKey>]>([
    ['a file of the checkpoint was written again', { stamp: '100@2' }],
    ['the layout is another', { layout: 'two matrices' }],
    ['the format is another', { format: 'int4' }],
    ['the model is another', { baseDigest: `${'ab'.repeat(31)}cd` }],
  ])('do not count when %s, and are replaced', async (_, change) => {
    await weightCache(folder, key).write(maker)
    const other = weightCache(folder, { ...key, ...change })
    expect(await other.read()).toBeUndefined()
    await other.write(makerOf(weights.slice(0, 1)))
    expect(kept(await other.read()).weights).toHaveLength(1)
  })

  test.each([
    ['in the first piece', 3],
    ['in the last', 2_097_152 * 2 + 100],
  ])('that are damaged %s are found out after the start, and removed', async (_, place) => {
    kept(await weightCache(folder, key).write(maker))
    const bytes = readFileSync(theFile())
    const data = 8 + Number(bytes.readBigUInt64LE())
    bytes[data + place]! ^= 1
    writeFileSync(theFile(), bytes)
    const reasons: string[] = []
    expect(await unmapped((why) => reasons.push(why)).read()).toBeUndefined()
    expect(reasons).toEqual(['the cached weights are damaged'])
    const back = kept(await weightCache(folder, key).read())
    expect(() => settle(back)).toThrow(/damaged; they are removed/)
    expect(readdirSync(folder)).toEqual([])
  })

  test('that were cut short are not believed, and the reason is told', async () => {
    const reasons: string[] = []
    const cache = weightCache(folder, key, (why) => reasons.push(why))
    kept(await cache.write(maker)).dispose()
    open.pop()
    truncateSync(theFile(), readFileSync(theFile()).length - 1)
    expect(await cache.read()).toBeUndefined()
    truncateSync(theFile(), 0)
    expect(await cache.read()).toBeUndefined()
    expect(reasons.slice(-2)).toEqual([
      expect.stringMatching(/checksums.*data_offsets/),
      expect.stringMatching(/8 bytes/),
    ])
    await cache.write(maker)
    expect(kept(await cache.read()).weights).toHaveLength(5)
  })

  test('leave no half-written file behind when they can not be made', async () => {
    const broken = makerOf([{ ...weights[0]!, shape: [4, 4] } as CachedWeight])
    await expect(weightCache(folder, key).write(broken)).rejects.toThrow(/is not 15 bytes/)
    expect(readdirSync(folder)).toEqual([])
  })

  test('that can not be kept are only reported', async () => {
    const reasons: string[] = []
    writeFileSync(join(folder, 'file'), '')
    const cache = weightCache(join(folder, 'file', 'below'), key, (why) => reasons.push(why))
    expect(await cache.write(maker)).toBeUndefined()
    expect(reasons).toEqual([expect.stringMatching(/could not be kept for the next start: ENOTDIR/)])
  })

  test('left half-written by a process that died are overwritten', async () => {
    const cache = weightCache(folder, key)
    kept(await cache.write(maker))
    const path = theFile()
    rmSync(path)
    writeFileSync(`${path}.partial`, 'x'.repeat(10_000))
    expect(content(kept(await cache.write(maker)).weights)).toEqual(content(weights))
    expect(readdirSync(folder)).toHaveLength(1)
  })

  test('that two nodes want at once are made once', async () => {
    let made = 0
    const counted: WeightMaker = {
      ...maker,
      make: (keep) => {
        made++
        return maker.make(keep)
      },
    }
    const both = await Promise.all([weightCache(folder, key).write(counted), weightCache(folder, key).write(counted)])
    expect(both.map((one) => content(kept(one).weights))).toEqual([content(weights), content(weights)])
    expect(made).toBe(1)
    expect(readdirSync(folder)).toHaveLength(1)
  })
})

describe('weights whose file follows behind', () => {
  const make = { rare: 'table', make: async () => weights }

  test('serve at once from the memory they were made in, and the next start finds them', async () => {
    const made = kept(await weightCache(folder, key).make(make))
    expect(made.weights).toBe(weights)
    expect(made.settle()).toBe(false)
    const rare = await made.filed
    expect(content([rare!])).toEqual(content(weights.slice(-1)))
    expect(rare!.data.buffer).not.toBe(weights.at(-1)!.data.buffer)
    expect(readdirSync(folder)).toHaveLength(1)
    const back = kept(await weightCache(folder, key).read())
    expect(content(back.weights)).toEqual(content(weights))
    expect(settle(back)).toBe(3)
  })

  test('given up before the file is whole leave nothing, and keep nobody from making them', async () => {
    const first = await weightCache(folder, key).make(make)
    first.dispose()
    expect(readdirSync(folder)).toEqual([])
    const second = kept(await weightCache(folder, key).make(make))
    expect(await first.filed).toBeUndefined()
    expect(await second.filed).toBeDefined()
    expect(content(kept(await weightCache(folder, key).read()).weights)).toEqual(content(weights))
    expect(readdirSync(folder)).toHaveLength(1)
  })

  test('serve where they can not be kept, and the reason is told', async () => {
    const reasons: string[] = []
    writeFileSync(join(folder, 'file'), '')
    const cache = weightCache(join(folder, 'file', 'below'), key, (why) => reasons.push(why))
    const made = kept(await cache.make(make))
    expect(made.weights).toBe(weights)
    expect(await made.filed).toBeUndefined()
    expect(reasons).toEqual([expect.stringMatching(/could not be kept for the next start: ENOTDIR/)])
  })

  test('that two nodes want at once are made once', async () => {
    let made = 0
    const counted = {
      ...make,
      make: async () => {
        made++
        return weights
      },
    }
    const both = await Promise.all([weightCache(folder, key).make(counted), weightCache(folder, key).make(counted)])
    expect(both.map((one) => content(kept(one).weights))).toEqual([content(weights), content(weights)])
    expect(made).toBe(1)
  })

  test('that can not be made keep nobody waiting', async () => {
    const broken = { ...make, make: () => Promise.reject(new Error('no such tensor')) }
    await expect(weightCache(folder, key).make(broken)).rejects.toThrow('no such tensor')
    expect(readdirSync(folder)).toEqual([])
  })
})
