/**
 * Simulates a fleet with the router's own code: who is served by a node that has the adapter, how even the load is, what
 * moves when nodes go or come, and what a decision costs. `npm run bench:routing [-- --quick]`.
 */

import { createFleetSnapshot, type FleetNode, type FleetSnapshot } from '../edge/fleet/fleet-snapshot.ts'
import { createResidentIndex } from '../edge/fleet/resident-index.ts'
import { DEFAULT_LOAD_BOUND } from '../edge/routing/bounded-load.ts'
import { keyHash, residentHash } from '../edge/routing/hash.ts'
import { type PlacementReason, placeAdapter, type ResidentIndex } from '../edge/routing/place.ts'
import { createRing, rankOwners } from '../edge/routing/ring.ts'
import { createRouter } from '../edge/routing/router.ts'

const quick = process.argv.includes('--quick')
const SEEDS = quick ? [1, 2] : [1, 2, 3, 4, 5]

/** mulberry32 (public domain): the same fleet and traffic for the same seed. */
function seededRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000
  }
}

/** Adapter numbers by Zipf's law: the n-th is asked for 1/n^s as often as the first. */
function zipf(adapters: number, exponent: number, random: () => number): () => number {
  const sums = new Float64Array(adapters)
  let sum = 0
  for (let n = 0; n < adapters; n++) {
    sum += 1 / (n + 1) ** exponent
    sums[n] = sum
  }
  return () => {
    const wanted = random() * sum
    let low = 0
    let high = adapters - 1
    while (low < high) {
      const middle = (low + high) >> 1
      if (sums[middle]! < wanted) {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return low
  }
}

/** What a node keeps in memory: so many adapters, the least recently used goes. */
class AdapterMemory implements ResidentIndex {
  readonly #held = new Map<number, true>()
  readonly #capacity: number

  constructor(capacity: number) {
    this.#capacity = capacity
  }

  get count(): number {
    return this.#held.size
  }

  tierOf(hash: number) {
    return this.#held.has(hash) ? ('engine' as const) : undefined
  }

  /** `true`: it was there. */
  use(hash: number): boolean {
    const hit = this.#held.delete(hash)
    this.#held.set(hash, true)
    if (this.#held.size > this.#capacity) {
      for (const oldest of this.#held.keys()) {
        this.#held.delete(oldest)
        break
      }
    }
    return hit
  }

  /** As a report of it, taken now. */
  copy(): ResidentIndex {
    return createResidentIndex({
      disk: new Uint32Array(0),
      ram: new Uint32Array(0),
      engine: Uint32Array.from(this.#held.keys()),
    })
  }
}

type Policy = 'random' | 'bounded hash' | '+ residency' | 'ringlet'

interface Traffic {
  policy: Policy
  seed: number
  nodes: number
  adapters: number
  exponent: number
  inFlight: number
  /** Adapters that a node's memory holds. */
  capacity: number
  requests: number
  /** Age at which the routers' picture of the fleet is replaced; 0: always exact. */
  staleMs?: number
  /** Isolates with a router each, which see each other only in the nodes' reports. */
  isolates?: number
  /** After so many requests the fleet changes. */
  change?: { at: number; nodes: number }
}

interface Outcome {
  /** Part of the requests whose node had the adapter. */
  held: number
  /** The same of those whose adapter had been asked for before: the others nobody could have had. */
  heldAgain: number
  /** Time mean of the fullest node's requests in flight over the mean. */
  inFlightRatio: number
  loadsPer1000: number
  copies: number
  reasons: Map<PlacementReason, number>
  /** Served by a holder in each twentieth of the run. */
  course: number[]
  decisionUs: { p50: number; p99: number }
}

/** Mean time between arrivals: with 128 in flight a request takes a second, as a reply of some 50 tokens does. */
const REQUEST_MS = 1_000

function simulate(traffic: Traffic): Outcome {
  const { policy, seed, inFlight, requests, staleMs = 0, isolates = 1 } = traffic
  const random = seededRandom(seed * 7919)
  const nextAdapter = zipf(traffic.adapters, traffic.exponent, random)
  const secret = `seed-${seed}`
  let time = 1_000_000
  const now = () => time
  const routers = Array.from({ length: isolates }, () => createRouter({ now }))

  let fleet = Array.from({ length: traffic.nodes }, (_, n) => startNode(`node-${n}`, traffic.capacity))
  const makeSnapshot = () =>
    createFleetSnapshot(
      fleet.map((node) => describe(node, staleMs > 0, time)),
      time,
    )
  let snapshot: FleetSnapshot = makeSnapshot()
  let snapshotAt = time

  const running: { node: SimulatedNode; release: () => void }[] = []
  const end = (index: number) => {
    const [ended] = running.splice(index, 1)
    ended!.release()
    ended!.node.inFlight -= 1
  }

  let held = 0
  let heldAgain = 0
  let countedAgain = 0
  let loads = 0
  let counted = 0
  let ratios = 0
  const asked = new Uint8Array(traffic.adapters)
  const reasons = new Map<PlacementReason, number>()
  const course: { held: number; all: number }[] = Array.from({ length: 20 }, () => ({ held: 0, all: 0 }))
  const decisions: number[] = []

  for (let n = 0; n < requests; n++) {
    time += REQUEST_MS / inFlight
    if (traffic.change?.at === n) {
      const gone = fleet.slice(traffic.change.nodes)
      for (let index = running.length - 1; index >= 0; index--) {
        if (gone.includes(running[index]!.node)) {
          end(index)
        }
      }
      const added = Math.max(0, traffic.change.nodes - fleet.length)
      fleet = [
        ...fleet.slice(0, traffic.change.nodes),
        ...Array.from({ length: added }, (_, index) => startNode(`node-${fleet.length + index}`, traffic.capacity)),
      ]
      snapshot = makeSnapshot()
      snapshotAt = time
    }
    if (staleMs > 0 && time - snapshotAt >= staleMs) {
      snapshot = makeSnapshot()
      snapshotAt = time
    }
    if (running.length >= inFlight) {
      end(Math.floor(random() * running.length))
    }
    const adapter = nextAdapter()
    const id = `org/adapter-${adapter}`
    const key = `hub:${id}`
    const began = performance.now()
    const { index, reason, release } = decide(policy, key, id)
    decisions.push((performance.now() - began) * 1000)

    const node = fleet[index]!
    const hit = node.memory.use(residentHash(key))
    node.inFlight += 1
    running.push({ node, release })
    const part = course[Math.floor((n / requests) * course.length)]!
    part.all += 1
    part.held += hit ? 1 : 0
    // The first quarter fills the memories.
    if (n >= requests / 4) {
      counted += 1
      held += hit ? 1 : 0
      countedAgain += asked[adapter]!
      heldAgain += hit ? asked[adapter]! : 0
      loads += hit ? 0 : 1
      ratios += Math.max(...fleet.map((one) => one.inFlight)) / (running.length / fleet.length)
      reasons.set(reason, (reasons.get(reason) ?? 0) + 1)
    }
    asked[adapter] = 1
  }
  decisions.sort((a, b) => a - b)
  return {
    held: held / counted,
    heldAgain: heldAgain / countedAgain,
    inFlightRatio: ratios / counted,
    loadsPer1000: (loads / counted) * 1000,
    copies: fleet.reduce((sum, node) => sum + node.memory.count, 0) / traffic.adapters,
    reasons,
    course: course.map((part) => part.held / part.all),
    decisionUs: {
      p50: decisions[Math.floor(decisions.length / 2)]!,
      p99: decisions[Math.floor(decisions.length * 0.99)]!,
    },
  }

  function decide(
    of: Policy,
    key: string,
    id: string,
  ): { index: number; reason: PlacementReason; release: () => void } {
    if (of === 'random') {
      return { index: Math.floor(random() * fleet.length), reason: 'cold', release: () => undefined }
    }
    if (of === 'ringlet') {
      const selection = { kind: 'single', ref: { source: 'hub', id } } as const
      const router = routers[Math.floor(random() * isolates)]!
      const query = { selection, placementKey: key, routingSecret: secret }
      const route = router.open(query, snapshot)(snapshot)!
      return { index: snapshot.ring.nodes.indexOf(route.node), reason: route.reason, release: route.release }
    }
    const placement = placeAdapter({
      ring: snapshot.ring,
      loads: Float64Array.from(fleet, (node) => node.inFlight),
      bound: DEFAULT_LOAD_BOUND,
      key: keyHash(key, secret),
      // A hash that no node has: placement without knowledge of what is resident.
      resident: of === 'bounded hash' ? 0 : residentHash(key),
      owners: 1,
      tried: new Set(),
    })!
    return { index: placement.index, reason: placement.reason, release: () => undefined }
  }
}

interface SimulatedNode {
  nodeId: string
  memory: AdapterMemory
  inFlight: number
}

function startNode(nodeId: string, capacity: number): SimulatedNode {
  return {
    nodeId: nodeId.replace(/\d+$/, (digits) => digits.padStart(5, '0')),
    memory: new AdapterMemory(capacity),
    inFlight: 0,
  }
}

function describe(node: SimulatedNode, stale: boolean, time: number): FleetNode {
  return {
    nodeId: node.nodeId,
    url: 'http://node.test',
    region: '',
    baseModel: 'base',
    baseDigest: 'base',
    dtype: 'int8',
    maxSequences: 32,
    maxPositions: 2048,
    inFlight: node.inFlight,
    queued: 0,
    draining: false,
    bootId: 'boot',
    lastSeenAt: time,
    damped: false,
    resident: stale ? node.memory.copy() : node.memory,
  }
}

const fixed = (value: number, digits = 3) => value.toFixed(digits)
const spread = (values: number[], digits = 3) => {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  return `${fixed(mean, digits)} (${fixed(Math.min(...values), digits)}–${fixed(Math.max(...values), digits)})`
}

function printPolicies(): void {
  const common = { nodes: 8, adapters: 1_000, exponent: 1, inFlight: 128, requests: quick ? 60_000 : 200_000 }
  console.log('\nServed by a node that has the adapter: Zipf 1, 1,000 adapters, 8 nodes, 128 in flight, bound 1.25;')
  console.log(
    `mean (least–most) of ${SEEDS.length} hash seeds. No slack: memories hold 1,000 adapters in all; 28 %: 1,280; 2x: 2,000.`,
  )
  console.log('| policy | no slack | 28 % slack | 2x | in flight max/mean | loads a 1,000 requests, no slack |')
  console.log('|---|---|---|---|---|---|')
  const rows: [string, Partial<Traffic> & { policy: Policy }][] = [
    ['random', { policy: 'random' }],
    ['bounded rendezvous hash alone', { policy: 'bounded hash' }],
    ['+ residency correction', { policy: '+ residency' }],
    ['+ owners for hot adapters = Ringlet, exact view', { policy: 'ringlet' }],
    ['Ringlet, view 1.5 s old', { policy: 'ringlet', staleMs: 1_500 }],
    ['Ringlet, view 1.5 s old, 4 isolates', { policy: 'ringlet', staleMs: 1_500, isolates: 4 }],
  ]
  for (const [name, options] of rows) {
    const at = (capacity: number) => SEEDS.map((seed) => simulate({ ...common, ...options, seed, capacity }))
    const [none, some, double] = [at(125), at(160), at(250)]
    const cells = [none, some, double].map((runs) => spread(runs.map((run) => run.held)))
    const ratio = spread(none.map((run) => run.inFlightRatio))
    const loads = spread(
      none.map((run) => run.loadsPer1000),
      0,
    )
    console.log(`| ${name} | ${cells.join(' | ')} | ${ratio} | ${loads} |`)
  }
}

function printSkews(): void {
  console.log('\nOther skews (Ringlet, view 1.5 s old, no slack):')
  console.log('| Zipf exponent | served by a holder | in flight max/mean |')
  console.log('|---|---|---|')
  for (const exponent of [0.6, 0.8, 1, 1.2, 1.5]) {
    const runs = SEEDS.map((seed) => {
      const requests = quick ? 60_000 : 120_000
      const fleet = { nodes: 8, adapters: 1_000, inFlight: 128, capacity: 125, staleMs: 1_500 }
      return simulate({ policy: 'ringlet', exponent, seed, requests, ...fleet })
    })
    console.log(
      `| ${exponent} | ${spread(runs.map((run) => run.held))} | ${spread(runs.map((run) => run.inFlightRatio))} |`,
    )
  }
}

function printKeys(): void {
  console.log('\nKeys: 10,000 adapters, 20 hash seeds (worst in brackets).')
  console.log(
    '| nodes | keys max/mean | moved when one node goes, of 1/N | needless | moved when one comes, of 1/(N+1) | needless |',
  )
  console.log('|---|---|---|---|---|---|')
  for (const count of [4, 8, 16]) {
    const results = Array.from({ length: 20 }, (_, seed) => countKeys(count, `seed-${seed}`))
    const worst = (pick: (result: (typeof results)[number]) => number) => {
      const values = results.map(pick)
      return `${fixed(values.reduce((sum, value) => sum + value, 0) / values.length)} (${fixed(Math.max(...values))})`
    }
    const needless = (pick: (result: (typeof results)[number]) => number) =>
      results.reduce((sum, one) => sum + pick(one), 0)
    console.log(
      `| ${count} | ${worst((one) => one.maxOverMean)} | ${worst((one) => one.movedOnLoss * count)} | ${needless((one) => one.needlessOnLoss)} | ${worst((one) => one.movedOnJoin * (count + 1))} | ${needless((one) => one.needlessOnJoin)} |`,
    )
  }
}

function countKeys(count: number, secret: string) {
  const keys = Array.from({ length: 10_000 }, (_, n) => keyHash(`hub:org/adapter-${n}`, secret))
  const nodes = Array.from({ length: count + 1 }, (_, n) => describe(startNode(`node-${n}`, 0), false, 0))
  const ownersIn = (members: FleetNode[]) => {
    const ring = createRing(members)
    return keys.map((key) => members[rankOwners(ring, key, 1)[0]!]!.nodeId)
  }
  const before = ownersIn(nodes.slice(0, count))
  const lost = ownersIn(nodes.slice(1, count))
  const joined = ownersIn(nodes)
  const [gone, come] = [nodes[0]!.nodeId, nodes[count]!.nodeId]
  const share = (predicate: (owner: string, index: number) => boolean) => before.filter(predicate).length / keys.length
  const counts = nodes.slice(0, count).map(({ nodeId }) => before.filter((owner) => owner === nodeId).length)
  return {
    maxOverMean: Math.max(...counts) / (keys.length / count),
    movedOnLoss: share((owner, n) => owner !== lost[n]),
    needlessOnLoss: share((owner, n) => owner !== lost[n] && owner !== gone) * keys.length,
    movedOnJoin: share((owner, n) => owner !== joined[n]),
    needlessOnJoin: share((owner, n) => owner !== joined[n] && joined[n] !== come) * keys.length,
  }
}

function printLarge(): void {
  console.log('\nLarge fleets (Zipf 1, view 1.5 s old, 28 % slack, one isolate):')
  console.log(
    '| nodes | adapters | in flight | served by a holder, of repeated adapters | in flight max/mean | decision µs p50 / p99 |',
  )
  console.log('|---|---|---|---|---|---|')
  const sizes: [number, number, number][] = quick
    ? [[16, 10_000, 60_000]]
    : [
        [16, 10_000, 200_000],
        [100, 100_000, 300_000],
        [1_000, 1_000_000, 150_000],
      ]
  for (const [nodes, adapters, requests] of sizes) {
    const capacity = Math.round((adapters / nodes) * 1.28)
    const fleet = { nodes, adapters, requests, capacity, inFlight: nodes * 16, staleMs: 1_500 }
    const run = simulate({ policy: 'ringlet', exponent: 1, seed: 1, ...fleet })
    const speed = `${fixed(run.decisionUs.p50, 1)} / ${fixed(run.decisionUs.p99, 1)}`
    console.log(
      `| ${nodes} | ${adapters} | ${nodes * 16} | ${fixed(run.heldAgain)} | ${fixed(run.inFlightRatio)} | ${speed} |`,
    )
  }
  console.log(
    'In a run shorter than the adapters are many, most misses are first requests, which nobody could serve from memory.',
  )
}

function printChanges(): void {
  console.log(
    '\nA node goes, or comes, in the middle of the run (8 nodes, no slack): served by a holder in each twentieth.',
  )
  const requests = quick ? 60_000 : 200_000
  for (const [name, nodes] of [
    ['8 → 7', 7],
    ['8 → 9', 9],
    ['8 → 16', 16],
  ] as const) {
    const fleet = { nodes: 8, adapters: 1_000, inFlight: 128, capacity: 125, staleMs: 1_500 }
    const run = simulate({
      policy: 'ringlet',
      exponent: 1,
      seed: 1,
      requests,
      ...fleet,
      change: { at: requests / 2, nodes },
    })
    console.log(
      `${name}: ${run.course
        .slice(8, 16)
        .map((part) => fixed(part, 2))
        .join(' ')}`,
    )
  }
}

printKeys()
printPolicies()
printSkews()
printChanges()
printLarge()
