/** What the router remembers: loads between reports, hot adapters, nodes that did not answer; and how it explains itself. */

import { describe, expect, test } from 'vitest'
import { createFleetSnapshot, type FleetNode, type FleetSnapshot } from '../../../edge/fleet/fleet-snapshot.ts'
import { createResidentIndex, toResidentHashes } from '../../../edge/fleet/resident-index.ts'
import { explainPlacement } from '../../../edge/routing/explain.ts'
import { createHotAdapters, MAX_OWNERS } from '../../../edge/routing/hot-adapters.ts'
import { createInFlight } from '../../../edge/routing/in-flight.ts'
import { createRouter, type RouteQuery } from '../../../edge/routing/router.ts'

function clock(start = 1_000_000) {
  let time = start
  return { now: () => time, pass: (ms: number) => (time += ms) }
}

function node(nodeId: string, changes: Partial<FleetNode> & { holds?: string[] } = {}): FleetNode {
  const { holds = [], ...rest } = changes
  return {
    nodeId,
    url: `http://${nodeId}.test`,
    region: '',
    baseModel: 'base',
    baseDigest: 'd1',
    dtype: 'f32',
    maxSequences: 32,
    maxPositions: 2048,
    inFlight: 0,
    queued: 0,
    draining: false,
    bootId: 'boot',
    lastSeenAt: 1_000_000,
    damped: false,
    resident: createResidentIndex(toResidentHashes(holds.map((ref) => ({ ref, digest: ref, tier: 'ram' })))),
    ...rest,
  }
}

const queryFor = (id: string): RouteQuery => ({
  selection: { kind: 'single', ref: { source: 'local', id } },
  placementKey: `local:${id}`,
  routingSecret: 'secret',
})

describe('load between two reports', () => {
  test('is what the node said, and what this isolate began and ended since', () => {
    const { now, pass } = clock()
    const router = createRouter({ now })
    const empty = createFleetSnapshot([node('a', { lastSeenAt: 999_000 })], now())
    const query = queryFor('x')
    const routes = [1, 2, 3].map(() => router.open(query, empty)(empty)!)
    expect([...router.loads(empty)]).toEqual([3])
    pass(1_000)
    // The node's next report, made now, counts the three and two of another isolate's.
    const reported = createFleetSnapshot([node('a', { inFlight: 5, lastSeenAt: now() })], now())
    expect([...router.loads(reported)]).toEqual([5])
    pass(500)
    routes[0]!.release()
    routes[0]!.release()
    expect([...router.loads(reported)]).toEqual([4])
    router.open(query, reported)(reported)
    router.open(query, reported)(reported)
    expect([...router.loads(reported)]).toEqual([6])
  })

  test('a node’s own word with a reply replaces both', () => {
    const { now } = clock()
    const router = createRouter({ now })
    const snapshot = createFleetSnapshot([node('a', { inFlight: 5 }), node('b')], now())
    const route = router.open(queryFor('x'), snapshot)(snapshot)!
    router.noteLoad('a', 9)
    router.noteLoad('gone', 9)
    expect(router.loads(snapshot)[0]).toBe(9)
    route.release()
    expect([...router.loads(snapshot)]).toEqual(route.node.nodeId === 'a' ? [8, 0] : [9, 0])
  })

  test('a report older than a request does not count it twice', () => {
    const { now, pass } = clock()
    const inFlight = createInFlight(now)
    inFlight.acquire('a')
    pass(1_000)
    const reportedAt = now()
    pass(1_000)
    const release = inFlight.acquire('a')
    expect(inFlight.changeSince('a', reportedAt)).toBe(1)
    pass(200)
    release()
    expect(inFlight.changeSince('a', reportedAt)).toBe(0)
  })
})

describe('hot adapters', () => {
  test('owners grow at once with the share of traffic, and shrink only after half a minute of calm', () => {
    const { now, pass } = clock()
    const hot = createHotAdapters(now)
    const request = (key: number) => {
      pass(10)
      return hot.note(key, 8)
    }
    for (let n = 0; n < 400; n++) {
      request(n % 4 === 0 ? 1 : 100 + n)
    }
    // A quarter of the traffic is two nodes' fair shares: eight quarters.
    expect(hot.owners(1)).toBe(8)
    expect(hot.owners(101)).toBe(1)

    for (let n = 0; n < 2_900; n++) {
      request(n % 100 === 0 ? 1 : 10_000 + n)
    }
    expect(hot.owners(1)).toBe(8)
    for (let n = 0; n < 5_000; n++) {
      request(n % 100 === 0 ? 1 : 20_000 + n)
    }
    expect(hot.owners(1)).toBe(1)
  })

  test('never more owners than nodes, nor than the cap', () => {
    const { now } = clock()
    const hot = createHotAdapters(now)
    for (let n = 0; n < 200; n++) {
      hot.note(1, 3)
      hot.note(2, 1_000)
    }
    expect(hot.owners(1)).toBe(3)
    expect(hot.owners(2)).toBe(MAX_OWNERS)
  })

  test('a flood of adapters that are asked for once does not push the hot ones out', () => {
    const { now, pass } = clock()
    const hot = createHotAdapters(now)
    for (let n = 0; n < 20_000; n++) {
      pass(1)
      hot.note(n % 5 === 0 ? 1 : 1_000 + n, 8)
    }
    expect(hot.share(1)).toBeCloseTo(0.2, 1)
  })
})

describe('nodes that did not answer', () => {
  test('come last until they are heard again', () => {
    const { now, pass } = clock()
    const router = createRouter({ now })
    const snapshot = createFleetSnapshot([node('a'), node('b'), node('c')], now())
    const query = queryFor('x')
    const order = () => {
      const pick = router.open(query, snapshot)
      return [1, 2, 3].map(() => pick(snapshot)!.node.nodeId)
    }
    const [owner, second, third] = order()
    pass(10)
    router.suspect(owner!)
    router.suspect(second!)
    expect(order()).toEqual([third, owner, second])
    const heard = createFleetSnapshot(
      snapshot.nodes.map((one) => ({ ...one, lastSeenAt: now() + 100 })),
      now() + 100,
    )
    expect(router.open(query, heard)(heard)!.node.nodeId).toBe(owner)
  })

  test('a stream goes on only with the same base, in the same number format if it can', () => {
    const { now } = clock()
    const router = createRouter({ now })
    const snapshot = createFleetSnapshot(
      [node('a', { dtype: 'int8' }), node('b', { dtype: 'int8' }), node('c', { dtype: 'f32' })],
      now(),
    )
    const pick = router.reopen(queryFor('x'), { baseDigest: 'd1', dtype: 'f32' })
    expect(pick(snapshot)!.node.nodeId).toBe('c')
    expect(['a', 'b']).toContain(pick(snapshot)!.node.nodeId)
    expect(router.reopen(queryFor('x'), { baseDigest: 'other', dtype: 'f32' })(snapshot)).toBeUndefined()
  })
})

describe('a client’s region', () => {
  const ids = ['eu-1', 'eu-2', 'na-1', 'na-2']
  const fleet = (busy: Record<string, number> = {}) =>
    createFleetSnapshot(
      ids.map((id) => node(id, { region: id.startsWith('eu') ? 'EU-west' : 'na', inFlight: busy[id] ?? 0 })),
      1_000_000,
    )
  const nodesOf = (region: string | undefined, snapshot: FleetSnapshot) => {
    const router = createRouter({ now: clock().now })
    return new Set(
      Array.from({ length: 40 }, (_, n) => {
        const route = router.open({ ...queryFor(`adapter-${n}`), region }, snapshot)(snapshot)!
        route.release()
        return route.node.nodeId
      }),
    )
  }

  test('keeps requests near, spread over that region’s nodes', () => {
    expect(nodesOf('EU', fleet())).toEqual(new Set(['eu-1', 'eu-2']))
    expect(nodesOf('NA', fleet())).toEqual(new Set(['na-1', 'na-2']))
  })

  test('without nodes, unknown, or with all its rows taken, gives way to the whole ring', () => {
    expect(nodesOf('AF', fleet()).size).toBe(4)
    expect(nodesOf(undefined, fleet()).size).toBe(4)
    expect(nodesOf('EU', fleet({ 'eu-1': 32, 'eu-2': 32 }))).toEqual(new Set(['na-1', 'na-2']))
  })

  test('that is lost is replaced within the same request', () => {
    const router = createRouter({ now: clock().now })
    const snapshot = fleet()
    const pick = router.open({ ...queryFor('x'), region: 'EU' }, snapshot)
    const order = ids.map(() => pick(snapshot)!.node.nodeId.slice(0, 2))
    expect(order).toEqual(['eu', 'eu', 'na', 'na'])
  })
})

test('the explanation of a choice among near nodes tells their ranks and bounds, not the whole ring’s', () => {
  const { now } = clock()
  const router = createRouter({ now })
  const query = { ...queryFor('x'), region: 'EU' }
  const near = ['eu-1', 'eu-2'].map((id) => node(id, { region: 'EU-west', inFlight: id === 'eu-1' ? 12 : 0 }))
  const far = ['na-1', 'na-2', 'na-3', 'na-4'].map((id) => node(id, { region: 'NA', inFlight: 30 }))
  const snapshot = createFleetSnapshot([...near, ...far], now())
  const explained = explainPlacement({ ...query, snapshot, router })
  expect(explained.region).toBe('EU')
  const shown = explained.nodes.map(({ nodeId, rank, limit, withinBound }) => [
    nodeId.slice(0, 2),
    rank,
    limit,
    withinBound,
  ])
  // 12 in flight on two: at most 9 on each. Of the whole ring's 132, 28 would be allowed.
  expect(shown.slice(0, 2)).toEqual([
    ['eu', 1, 9, explained.nodes[0]!.nodeId === 'eu-2'],
    ['eu', 2, 9, explained.nodes[1]!.nodeId === 'eu-2'],
  ])
  expect(shown.slice(2).map(([region, rank]) => [region, rank])).toEqual(Array(4).fill(['na', undefined]))
  expect(explained.chosen!.nodeId).toBe('eu-2')
  expect(router.open(query, snapshot)(snapshot)!.node.nodeId).toBe('eu-2')

  const busy = createFleetSnapshot([...near.map((one) => ({ ...one, inFlight: 32 })), ...far], now())
  const elsewhere = explainPlacement({ ...query, snapshot: busy, router })
  expect(elsewhere.region).toBeNull()
  expect(elsewhere.nodes.map(({ rank }) => rank)).toEqual([1, 2, 3, 4, 5, 6])
  expect(elsewhere.chosen!.nodeId).toMatch(/^na/)
})

test('a fleet with two bases routes to the larger part of it, and a damped node waits', () => {
  const nodes = [node('a'), node('b'), node('c', { baseDigest: 'd2' }), node('d', { damped: true })]
  const snapshot = createFleetSnapshot(nodes, 1)
  expect(snapshot.ring.nodes.map((one) => one.nodeId)).toEqual(['a', 'b'])
  expect(createFleetSnapshot([node('d', { damped: true })], 1).ring.nodes).toHaveLength(1)
})

test('the explanation names the node that the next request goes to, and why', () => {
  const { now } = clock()
  const router = createRouter({ now })
  const query = queryFor('x')
  const plain = createFleetSnapshot([node('a'), node('b'), node('c')], now())
  const [first, second] = explainPlacement({ ...query, snapshot: plain, router }).nodes.map((one) => one.nodeId)
  const snapshot = createFleetSnapshot(
    [
      ...['a', 'b', 'c'].map((id) =>
        node(id, { ...(id === first ? { inFlight: 40 } : {}), ...(id === second ? { holds: ['local:x'] } : {}) }),
      ),
      node('z', { baseDigest: 'd2' }),
    ],
    now(),
  )
  const explained = explainPlacement({ ...query, snapshot, router })
  expect(explained.chosen).toEqual({ nodeId: second, reason: 'holder' })
  expect(explained.nodes[0]).toMatchObject({ nodeId: first, rank: 1, tier: 'none', inFlight: 40, withinBound: false })
  expect(explained.nodes[1]).toMatchObject({ nodeId: second, rank: 2, tier: 'ram', withinBound: true })
  expect(explained.outsideRing).toEqual([{ nodeId: 'z', reason: 'base_differs' }])
  expect(router.open(query, snapshot)(snapshot)!.node.nodeId).toBe(explained.chosen!.nodeId)
})
