/** An isolate's picture of the fleet while the registry is prompt, slow, partly away, or restarted. */

import { describe, expect, test } from 'vitest'
import { createFleetView } from '../../../edge/fleet/fleet-view.ts'
import { createResidentIndex, toResidentHashes } from '../../../edge/fleet/resident-index.ts'
import type { ShardReader, ShardReport } from '../../../edge/fleet/shard-report.ts'
import { residentHash } from '../../../edge/routing/hash.ts'
import { ADAPTER_TIERS, type ResidentAdapter } from '../../../shared/fleet.ts'

function nodeReport(
  nodeId: string,
  changes: { inFlight?: number; bootId?: string } = {},
): ShardReport['nodes'][number] {
  return {
    report: {
      nodeId,
      url: `http://${nodeId}.test`,
      region: '',
      baseModel: 'base',
      baseDigest: 'd',
      dtype: 'f32',
      maxSequences: 8,
      maxPositions: 512,
      inFlight: 0,
      queued: 0,
      draining: false,
      bootId: 'boot',
      ...changes,
    },
    ageMs: 500,
    damped: false,
  }
}

const holding = (...refs: string[]) =>
  toResidentHashes(refs.map((ref): ResidentAdapter => ({ ref, digest: ref, tier: 'engine' })))

/** A registry whose shards answer as the test says, and that notes what it was asked. */
function registry(answers: ((cursor: number, run: string) => Promise<ShardReport>)[]) {
  const asked: { shard: number; run: string; cursor: number }[] = []
  const reader: ShardReader = {
    shards: answers.length,
    read: (shard, run, cursor) => {
      asked.push({ shard, run, cursor })
      return answers[shard]!(cursor, run)
    },
  }
  return { reader, asked }
}

function setUp(answers: ((cursor: number, run: string) => Promise<ShardReport>)[]) {
  let time = 1_000_000
  const { reader, asked } = registry(answers)
  const view = createFleetView({ now: () => time, shardTimeoutMs: 20 })
  const behind: Promise<unknown>[] = []
  return {
    asked,
    pass: (ms: number) => {
      time += ms
    },
    look: (longestAgeMs?: number) => view.snapshot(reader, (work) => behind.push(work), longestAgeMs),
    /** Lets refreshes that nobody waits for end. */
    settle: () => Promise.all(behind.splice(0)),
  }
}

const report = (nodes: ShardReport['nodes'], changes: Partial<ShardReport> = {}): ShardReport => ({
  run: 'run-1',
  cursor: 1,
  allSilent: false,
  nodes,
  residents: [],
  ...changes,
})
const never = () => new Promise<ShardReport>(() => undefined)

test('the first request waits for the registry, the next ones take what it said', async () => {
  const { look, asked } = setUp([async () => report([nodeReport('a')]), async () => report([nodeReport('b')])])
  expect((await look()).nodes.map((node) => node.nodeId)).toEqual(['a', 'b'])
  await look()
  expect(asked).toHaveLength(2)
})

test('an older picture is given out at once and refreshed behind the request', async () => {
  let inFlight = 0
  const { look, pass, settle } = setUp([async () => report([nodeReport('a', { inFlight: inFlight++ })])])
  expect((await look()).nodes[0]!.inFlight).toBe(0)
  pass(1_500)
  expect((await look()).nodes[0]!.inFlight).toBe(0)
  await settle()
  expect((await look()).nodes[0]!.inFlight).toBe(1)
})

test('who asks for what is now waits for it, however young the picture is', async () => {
  let inFlight = 0
  const { look, asked } = setUp([async () => report([nodeReport('a', { inFlight: inFlight++ })])])
  expect((await look()).nodes[0]!.inFlight).toBe(0)
  expect((await look(0)).nodes[0]!.inFlight).toBe(1)
  expect((await look()).nodes[0]!.inFlight).toBe(1)
  expect(asked).toHaveLength(2)
})

describe('a registry that does not answer', () => {
  test('leaves the known nodes in place, and makes no request wait but one in ten seconds', async () => {
    let alive = true
    const { look, pass, settle, asked } = setUp([() => (alive ? Promise.resolve(report([nodeReport('a')])) : never())])
    await look()
    alive = false
    for (let n = 0; n < 5; n++) {
      pass(2_000)
      expect((await look()).nodes).toHaveLength(1)
      await settle()
    }
    pass(60_000)
    const before = asked.length
    const picture = await look()
    expect(picture.nodes.map((node) => node.nodeId)).toEqual(['a'])
    expect(asked.length).toBe(before + 1)
    expect(picture.takenAt).toBe(1_000_000)
  })

  test('in one shard of two costs nothing but that shard’s news', async () => {
    let slow = false
    let inFlight = 0
    const { look, pass, settle } = setUp([
      async () => report([nodeReport('a', { inFlight: inFlight++ })]),
      () => (slow ? never() : Promise.resolve(report([nodeReport('b')]))),
    ])
    await look()
    slow = true
    pass(2_000)
    await look()
    await settle()
    const nodes = (await look()).nodes
    expect(nodes.map((node) => [node.nodeId, node.inFlight])).toEqual([
      ['a', 1],
      ['b', 0],
    ])
  })

  test('from the start gives an empty fleet, not an error', async () => {
    const { look } = setUp([() => Promise.reject(new Error('overloaded'))])
    expect((await look()).nodes).toEqual([])
  })
})

describe('residents', () => {
  test('travel when they change, and are kept otherwise', async () => {
    const x = residentHash('local:x')
    const { look, pass, settle, asked } = setUp([
      async (cursor) =>
        report([nodeReport('a')], cursor < 1 ? { residents: [{ nodeId: 'a', hashes: holding('local:x') }] } : {}),
    ])
    expect((await look()).nodes[0]!.resident.tierOf(x)).toBe('engine')
    pass(2_000)
    await look()
    await settle()
    expect(asked.at(-1)).toMatchObject({ run: 'run-1', cursor: 1 })
    expect((await look()).nodes[0]!.resident.tierOf(x)).toBe('engine')
  })

  test('of a restarted node are gone until it names them; a restarted registry loses none', async () => {
    const x = residentHash('local:x')
    let run = 'run-1'
    let bootId = 'boot'
    const { look, pass, settle } = setUp([
      async (_cursor, known) =>
        report([nodeReport('a', { bootId })], {
          run,
          cursor: run === 'run-1' ? 1 : 0,
          residents: known === run || run !== 'run-1' ? [] : [{ nodeId: 'a', hashes: holding('local:x') }],
        }),
    ])
    const again = async () => {
      pass(2_000)
      await look()
      await settle()
      return (await look()).nodes[0]!.resident.tierOf(x)
    }
    await look()
    run = 'run-2'
    expect(await again()).toBe('engine')
    bootId = 'boot-2'
    expect(await again()).toBeUndefined()
  })

  test('10,000 adapters are found in their tier, and others are not', () => {
    const resident = Array.from({ length: 10_000 }, (_, n): ResidentAdapter => {
      return { ref: `hub:org/a${n}@main`, digest: `${n}`, tier: ADAPTER_TIERS[1 + (n % 3)]! }
    })
    const index = createResidentIndex(toResidentHashes(resident))
    expect(index.count).toBe(10_000)
    expect(resident.every(({ ref, tier }) => index.tierOf(residentHash(ref)) === tier)).toBe(true)
    const strangers = Array.from({ length: 10_000 }, (_, n) => residentHash(`hub:other/b${n}@main`))
    expect(strangers.filter((hash) => index.tierOf(hash) !== undefined).length).toBeLessThanOrEqual(1)
  })
})

test('nodes that fell silent all at once stay; those of one silent shard go while others are heard', async () => {
  let others: Partial<ShardReport> = {}
  const { look, pass, settle } = setUp([
    async () => report([nodeReport('a')], { allSilent: true }),
    async () => report([nodeReport('b')], others),
  ])
  const first = await look()
  expect([first.nodes.map((node) => node.nodeId), first.silent]).toEqual([['b'], false])
  others = { allSilent: true }
  pass(1_500)
  await look()
  await settle()
  const { nodes, ring, silent } = await look()
  expect([nodes.map((node) => node.nodeId), ring.nodes.length, silent]).toEqual([['a', 'b'], 2, true])
})
