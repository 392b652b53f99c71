// A simulated fleet under Zipf traffic, placed by the router's own code; nodes are memories that forget the least used.

import { createFleetSnapshot, type FleetNode, type FleetSnapshot } from '../edge/fleet/fleet-snapshot.ts'
import { createResidentIndex } from '../edge/fleet/resident-index.ts'
import { DEFAULT_LOAD_BOUND } from '../edge/routing/bounded-load.ts'
import { keyHash, residentHash } from '../edge/routing/hash.ts'
import { type PlacementReason, placeAdapter, type ResidentIndex } from '../edge/routing/place.ts'
import { createRouter, type Router } from '../edge/routing/router.ts'

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

export type Policy = 'random' | 'bounded hash' | '+ residency' | 'ringlet'

export interface Traffic {
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

export interface Outcome {
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

export function simulate(traffic: Traffic): Outcome {
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
    const { index, reason, release, router } = decide(policy, key, id)
    decisions.push((performance.now() - began) * 1000)

    const node = fleet[index]!
    const hit = node.memory.use(residentHash(key))
    node.inFlight += 1
    // The node's reply says so to the isolate that asked.
    router?.noteLoad(node.nodeId, node.inFlight)
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
  ): { index: number; reason: PlacementReason; release: () => void; router?: Router } {
    if (of === 'random') {
      return { index: Math.floor(random() * fleet.length), reason: 'cold', release: () => undefined }
    }
    if (of === 'ringlet') {
      const selection = { kind: 'single', ref: { source: 'hub', id } } as const
      const router = routers[Math.floor(random() * isolates)]!
      const query = { selection, placementKey: key, routingSecret: secret }
      const route = router.open(query, snapshot)(snapshot)!
      return { index: snapshot.ring.nodes.indexOf(route.node), reason: route.reason, release: route.release, router }
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

export interface SimulatedNode {
  nodeId: string
  memory: AdapterMemory
  inFlight: number
}

export function startNode(nodeId: string, capacity: number): SimulatedNode {
  return {
    nodeId: nodeId.replace(/\d+$/, (digits) => digits.padStart(5, '0')),
    memory: new AdapterMemory(capacity),
    inFlight: 0,
  }
}

export function describe(node: SimulatedNode, stale: boolean, time: number): FleetNode {
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
