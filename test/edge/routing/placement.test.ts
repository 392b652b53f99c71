/** Placement by its properties: few moves, even shares, loads in their bound, holders first, drains that hand over. */

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { DEFAULT_LOAD_BOUND, loadLimit } from '../../../edge/routing/bounded-load.ts'
import { keyHash, residentHash } from '../../../edge/routing/hash.ts'
import { type PlacementNode, type PlacementQuery, placeAdapter, placeBase } from '../../../edge/routing/place.ts'
import { createRing, rankOwners } from '../../../edge/routing/ring.ts'
import type { AdapterTier } from '../../../shared/fleet.ts'

const REF = 'hub:org/adapter@1'

interface NodeSketch {
  nodeId: string
  maxSequences?: number
  draining?: boolean
  /** The tier of `REF` on the node. */
  tier?: AdapterTier
}

function sketchNode({ nodeId, maxSequences = 32, draining = false, tier }: NodeSketch): PlacementNode {
  return {
    nodeId,
    maxSequences,
    draining,
    resident: { count: 0, tierOf: (hash) => (hash === residentHash(REF) ? tier : undefined) },
  }
}

const fleetOf = (count: number, changes: Partial<NodeSketch> = {}) =>
  Array.from({ length: count }, (_, n) => sketchNode({ nodeId: `node-${n}`, ...changes }))

function queryFor(nodes: readonly PlacementNode[], changes: Partial<PlacementQuery> = {}): PlacementQuery {
  return {
    ring: createRing(nodes),
    loads: new Float64Array(nodes.length),
    bound: DEFAULT_LOAD_BOUND,
    key: keyHash(REF, 'secret'),
    resident: residentHash(REF),
    owners: 1,
    tried: new Set(),
    ...changes,
  }
}

const ownerId = (nodes: readonly PlacementNode[], key: string, secret: string) => {
  const ring = createRing(nodes)
  return ring.nodes[rankOwners(ring, keyHash(key, secret), 1)[0]!]!.nodeId
}

describe('rendezvous hashing', () => {
  test('a node that goes moves its own keys and no others; one that comes takes keys and shuffles none', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 20 }), fc.nat(), fc.string(), (count, pick, secret) => {
        const nodes = fleetOf(count)
        const gone = nodes[pick % count]!.nodeId
        const rest = nodes.filter((node) => node.nodeId !== gone)
        for (let n = 0; n < 200; n++) {
          const before = ownerId(nodes, `hub:org/a${n}`, secret)
          const after = ownerId(rest, `hub:org/a${n}`, secret)
          expect(before === gone || before === after).toBe(true)
        }
      }),
      { numRuns: 30 },
    )
  })

  test('the order of the nodes changes nothing, and the secret changes everything', () => {
    const nodes = fleetOf(12)
    const keys = Array.from({ length: 500 }, (_, n) => `local:adapter-${n}`)
    const shuffled = [...nodes].reverse()
    expect(keys.map((key) => ownerId(shuffled, key, 's1'))).toEqual(keys.map((key) => ownerId(nodes, key, 's1')))
    const same = keys.filter((key) => ownerId(nodes, key, 's1') === ownerId(nodes, key, 's2')).length
    // One in twelve by chance: 42 expected, 80 is six standard deviations away.
    expect(same).toBeLessThan(80)
  })

  test('10,000 keys on 8 nodes: the fullest has at most 1.10 of the mean, whatever the secret', () => {
    const nodes = fleetOf(8)
    const ring = createRing(nodes)
    for (let seed = 0; seed < 20; seed++) {
      const counts = new Array<number>(8).fill(0)
      for (let n = 0; n < 10_000; n++) {
        counts[rankOwners(ring, keyHash(`hub:org/a${n}`, `seed-${seed}`), 1)[0]!]! += 1
      }
      expect(Math.max(...counts) / 1250).toBeLessThanOrEqual(1.1)
    }
  })

  test('a node of twice the size owns about twice the keys, and growing it takes keys from the others alone', () => {
    const small = fleetOf(4)
    const grown = small.map((node) => (node.nodeId === 'node-0' ? { ...node, maxSequences: 64 } : node))
    let owned = 0
    for (let n = 0; n < 5_000; n++) {
      const before = ownerId(small, `k${n}`, 's')
      const after = ownerId(grown, `k${n}`, 's')
      expect(after === before || after === 'node-0').toBe(true)
      owned += after === 'node-0' ? 1 : 0
    }
    expect(owned / 5_000).toBeCloseTo(2 / 5, 1)
  })

  test('owners come in the order of their claims, as a full sort would have them', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 8 }), fc.nat(), (count, wanted, key) => {
        const ring = createRing(fleetOf(count))
        const all = rankOwners(ring, key, count)
        expect(rankOwners(ring, key, wanted)).toEqual(all.slice(0, wanted))
        expect(new Set(all).size).toBe(count)
      }),
      { numRuns: 50 },
    )
  })
})

describe('bounded load', () => {
  /*
   * 8 equal nodes, factor 1.25, worked:
   *   in flight   share of 1.25 · (n + 1)   limit
   *   0           0.16                       4 (idle allowance)
   *   24          3.9                        4
   *   32          5.2                        6
   *   128         20.2                       21
   */
  test.each([
    [0, 4],
    [24, 4],
    [32, 6],
    [128, 21],
  ])('with %i in flight a node takes up to %i', (inFlight, limit) => {
    expect(loadLimit(32, 256, inFlight, DEFAULT_LOAD_BOUND)).toBe(limit)
  })

  test('no node goes over its bound while another is within, and every node can be reached', () => {
    const loadsOf = (count: number) => fc.array(fc.nat({ max: 60 }), { minLength: count, maxLength: count })
    const tiers = fc.constantFrom<AdapterTier | undefined>(undefined, 'disk', 'ram', 'engine')
    fc.assert(
      fc.property(
        fc
          .integer({ min: 1, max: 12 })
          .chain((count) =>
            fc.tuple(
              loadsOf(count),
              fc.array(tiers, { minLength: count, maxLength: count }),
              fc.integer({ min: 1, max: 4 }),
            ),
          ),
        ([loads, held, owners]) => {
          const nodes = loads.map((_, n) =>
            sketchNode({ nodeId: `node-${n}`, ...(held[n] === undefined ? {} : { tier: held[n] }) }),
          )
          const query = queryFor(nodes, { loads: Float64Array.from(loads), owners })
          const total = loads.reduce((sum, load) => sum + load, 0)
          const within = (n: number) => loads[n]! < loadLimit(32, query.ring.totalWeight, total, DEFAULT_LOAD_BOUND)
          const placement = placeAdapter(query)!
          expect(within(placement.index)).toBe(nodes.some((_, n) => within(n)))
          if (nodes.some((_, n) => within(n) && (held[n] === 'ram' || held[n] === 'engine'))) {
            expect(['ram', 'engine']).toContain(held[placement.index])
          }
          const tried = new Set<number>()
          for (
            let next = placeAdapter({ ...query, tried });
            next !== undefined;
            next = placeAdapter({ ...query, tried })
          ) {
            expect(tried.has(next.index)).toBe(false)
            tried.add(next.index)
          }
          expect(tried.size).toBe(nodes.length)
        },
      ),
    )
  })
})

describe('residency', () => {
  const nodes = fleetOf(4)
  const [first, second, third] = rankOwners(createRing(nodes), keyHash(REF, 'secret'), 4)
  const holding = (tiers: Record<number, AdapterTier>, draining?: number) =>
    nodes.map((node, n) =>
      sketchNode({
        nodeId: node.nodeId,
        draining: n === draining,
        ...(tiers[n] === undefined ? {} : { tier: tiers[n] }),
      }),
    )
  const full = (...indices: number[]) => Float64Array.from(nodes, (_, n) => (indices.includes(n) ? 50 : 3))

  test('nobody has it: the first owner loads it, and the second when the first is over its bound', () => {
    expect(placeAdapter(queryFor(nodes))).toEqual({ index: first, reason: 'cold', prefetch: undefined })
    expect(placeAdapter(queryFor(nodes, { loads: full(first!) }))).toMatchObject({ index: second, reason: 'spill' })
  })

  test('over the bound, a node that has it comes before the second owner that has not', () => {
    const query = queryFor(holding({ [first!]: 'engine', [third!]: 'ram' }), { loads: full(first!) })
    expect(placeAdapter(query)).toMatchObject({ index: third, reason: 'holder' })
  })

  test('an owner without it lets a holder answer, and is told to load it', () => {
    const placement = placeAdapter(queryFor(holding({ [third!]: 'engine' })))
    expect(placement).toEqual({ index: third, reason: 'holder', prefetch: first })
  })

  test('memory comes before disk, disk before nothing', () => {
    expect(placeAdapter(queryFor(holding({ [first!]: 'disk', [third!]: 'ram' })))).toMatchObject({ index: third })
    expect(placeAdapter(queryFor(holding({ [third!]: 'disk' })))).toMatchObject({ index: third })
  })

  test('a hot adapter goes to the least loaded of its owners that have it', () => {
    const tiers = { [first!]: 'engine', [second!]: 'engine', [third!]: 'engine' } as const
    const loads = Float64Array.from(nodes, (_, n) => (n === second ? 2 : 3))
    const placement = placeAdapter(queryFor(holding(tiers), { owners: 3, loads }))
    expect(placement).toEqual({ index: second, reason: 'replica', prefetch: undefined })
    const oneMissing = placeAdapter(queryFor(holding({ [first!]: 'engine' }), { owners: 2 }))
    expect(oneMissing).toEqual({ index: first, reason: 'replica', prefetch: second })
  })

  test('a draining holder answers until the next owner has the adapter, and nothing else', () => {
    const before = placeAdapter(queryFor(holding({ [first!]: 'engine' }, first)))
    expect(before).toEqual({ index: first, reason: 'handover', prefetch: second })
    const after = placeAdapter(queryFor(holding({ [first!]: 'engine', [second!]: 'ram' }, first)))
    expect(after).toMatchObject({ index: second, reason: 'owner' })
    expect(placeAdapter(queryFor(holding({}, first)))).toMatchObject({ index: second, reason: 'cold' })
  })
})

test('base requests go to the node with the lowest load for its size, draining ones last', () => {
  const nodes = [
    sketchNode({ nodeId: 'big', maxSequences: 64 }),
    sketchNode({ nodeId: 'small', maxSequences: 8 }),
    sketchNode({ nodeId: 'going', maxSequences: 64, draining: true }),
  ]
  const place = (...loads: number[]) => placeBase(queryFor(nodes, { loads: Float64Array.from(loads) }))!.index
  expect(place(16, 1, 0)).toBe(1)
  expect(place(16, 3, 0)).toBe(0)
  expect(placeBase(queryFor(nodes, { tried: new Set([0, 1]) }))!.index).toBe(2)
})
