/** Which node takes a request for an adapter, and why. Pure: the fleet, its loads and the key in, one node out. */

import type { AdapterTier } from '../../shared/fleet.ts'
import { type LoadBound, loadLimit } from './bounded-load.ts'
import { claim, type Ring, type RingNode, rankOwners } from './ring.ts'

export interface ResidentIndex {
  /** How many adapters the node has on disk, in memory or in the engine. */
  count: number
  /** Where the node has the adapter with this `residentHash`; `undefined`: nowhere. */
  tierOf: (hash: number) => AdapterTier | undefined
}

export interface PlacementNode extends RingNode {
  resident: ResidentIndex
}

export interface PlacementQuery {
  ring: Ring<PlacementNode>
  /** In flight, by the ring's index. */
  loads: Float64Array
  bound: LoadBound
  /** `keyHash` of the placement key. */
  key: number
  /** `residentHash` of the exact selection. */
  resident: number
  /** How many owners the adapter has: 1, or more while it is hot. */
  owners: number
  /** Indices already tried for this request. */
  tried: ReadonlySet<number>
}

/**
 * `owner`: the first owner has it · `replica`: hot, the least loaded of its owners · `holder`: the first owner is over its
 * bound or has not got it, another node has · `handover`: only a draining node has it, the next owner is told to load it ·
 * `cold`: nobody has it, the first owner loads it · `spill`: nobody within its bound has it, the next owner within loads
 * it · `overloaded`: every node is over its bound, the least loaded · `least_loaded`: the base, which every node has.
 */
export type PlacementReason =
  | 'owner'
  | 'replica'
  | 'holder'
  | 'handover'
  | 'cold'
  | 'spill'
  | 'overloaded'
  | 'least_loaded'

export interface Placement {
  index: number
  reason: PlacementReason
  /** A node that should load the adapter meanwhile, because it will own it next. */
  prefetch: number | undefined
}

/** `undefined`: no node is left to try. */
export function placeAdapter(query: PlacementQuery): Placement | undefined {
  const { ring, key } = query
  const owners = rankOwners(ring, key, query.owners)
  const candidates = scan(query)
  const missing = owners.find((index) => candidates.isWithin(index) && !holdsInMemory(query, index))

  if (owners.length > 1) {
    const ready = owners.filter((index) => candidates.isWithin(index) && holdsInMemory(query, index))
    const replica = leastLoaded(query, ready)
    if (replica !== undefined) {
      return { index: replica, reason: 'replica', prefetch: missing }
    }
  }
  const holder = candidates.inMemory ?? candidates.onDisk
  if (holder !== undefined) {
    return { index: holder, reason: holder === owners[0] ? 'owner' : 'holder', prefetch: missing }
  }
  if (candidates.drainingHolder !== undefined) {
    return { index: candidates.drainingHolder, reason: 'handover', prefetch: candidates.within }
  }
  if (candidates.within !== undefined) {
    const reason = candidates.within === owners[0] ? 'cold' : 'spill'
    return { index: candidates.within, reason, prefetch: undefined }
  }
  return placeAnywhere(query, 'overloaded')
}

/** The base model needs no affinity: the node with the lowest load for its size. */
export function placeBase(query: Pick<PlacementQuery, 'ring' | 'loads' | 'tried' | 'key'>): Placement | undefined {
  return placeAnywhere(query, 'least_loaded')
}

interface Candidates {
  isWithin: (index: number) => boolean
  /** Highest claims among the nodes within their bound: that have it in memory, on disk, and at all. */
  inMemory: number | undefined
  onDisk: number | undefined
  within: number | undefined
  /** A draining node that has it in memory and still answers. */
  drainingHolder: number | undefined
}

/** One pass. Residency is looked up only where a node could still win. */
function scan(query: PlacementQuery): Candidates {
  const { ring, loads, bound, key, tried } = query
  let total = 0
  for (let index = 0; index < loads.length; index++) {
    total += loads[index]!
  }
  const isUntried = tried.size === 0 ? () => true : (index: number) => !tried.has(index)
  const isWithin = (index: number) =>
    isUntried(index) &&
    ring.draining[index] === 0 &&
    loads[index]! < loadLimit(ring.weights[index]!, ring.totalWeight, total, bound)

  const found: Candidates = {
    isWithin,
    inMemory: undefined,
    onDisk: undefined,
    within: undefined,
    drainingHolder: undefined,
  }
  let memoryClaim = -1
  let diskClaim = -1
  let withinClaim = -1
  for (let index = 0; index < ring.nodes.length; index++) {
    if (ring.draining[index] === 1) {
      if (isUntried(index) && holdsInMemory(query, index)) {
        found.drainingHolder = index
      }
      continue
    }
    if (!isWithin(index)) {
      continue
    }
    const nodeClaim = claim(ring, index, key)
    if (nodeClaim > withinClaim) {
      withinClaim = nodeClaim
      found.within = index
    }
    if (nodeClaim > memoryClaim) {
      const tier = ring.nodes[index]!.resident.tierOf(query.resident)
      if (tier === 'engine' || tier === 'ram') {
        memoryClaim = nodeClaim
        found.inMemory = index
      } else if (tier === 'disk' && nodeClaim > diskClaim) {
        diskClaim = nodeClaim
        found.onDisk = index
      }
    }
  }
  return found
}

function holdsInMemory(query: PlacementQuery, index: number): boolean {
  const tier = query.ring.nodes[index]!.resident.tierOf(query.resident)
  return tier === 'engine' || tier === 'ram'
}

function leastLoaded(query: Pick<PlacementQuery, 'ring' | 'loads'>, indices: Iterable<number>): number | undefined {
  let best: number | undefined
  let bestLoad = Number.POSITIVE_INFINITY
  for (const index of indices) {
    const load = query.loads[index]! / query.ring.weights[index]!
    if (load < bestLoad) {
      bestLoad = load
      best = index
    }
  }
  return best
}

/** Draining nodes only when no other is left; among equally loaded ones the key decides, so that they are used in turn. */
function placeAnywhere(
  query: Pick<PlacementQuery, 'ring' | 'loads' | 'tried' | 'key'>,
  reason: PlacementReason,
): Placement | undefined {
  const { ring, loads, tried, key } = query
  let best: number | undefined
  for (let index = 0; index < ring.nodes.length; index++) {
    if (!tried.has(index) && (best === undefined || precedes(index, best))) {
      best = index
    }
  }
  return best === undefined ? undefined : { index: best, reason, prefetch: undefined }

  function precedes(a: number, b: number): boolean {
    const drains = Number(ring.nodes[a]!.draining) - Number(ring.nodes[b]!.draining)
    const load = loads[a]! / ring.weights[a]! - loads[b]! / ring.weights[b]!
    return drains !== 0 ? drains < 0 : load !== 0 ? load < 0 : claim(ring, a, key) > claim(ring, b, key)
  }
}
