/** What an isolate remembers between requests to place them: its requests in flight, hot adapters, nodes that failed it. */

import { type AdapterSelection, selectionKey } from '../../shared/adapter-ref.ts'
import type { FleetNode, FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import { DEFAULT_LOAD_BOUND, type LoadBound } from './bounded-load.ts'
import { keyHash, residentHash } from './hash.ts'
import { createHotAdapters, type HotAdapters } from './hot-adapters.ts'
import { createInFlight } from './in-flight.ts'
import { type Placement, type PlacementReason, placeAdapter, placeBase } from './place.ts'
import { regionOf } from './regions.ts'
import type { Ring } from './ring.ts'

export interface RouteQuery {
  selection: AdapterSelection
  /** `ForwardRequest.placementKey`. */
  placementKey: string
  routingSecret: string
  /** Where the client is: nodes of this region come first while they have rows free. */
  region?: string | undefined
}

/** A node for one attempt. */
export interface Route {
  node: FleetNode
  reason: PlacementReason
  /** A node that should load the adapter meanwhile. */
  prefetch: FleetNode | undefined
  /** The node counts as busier until this is called. */
  release: () => void
}

/** Each call takes the next best node for one request, none twice; `undefined`: none is left. */
export type RoutePicker = (snapshot: FleetSnapshot) => Route | undefined

export interface Router {
  bound: LoadBound
  hot: HotAdapters
  /** Begins the routing of one request. */
  open: (query: RouteQuery, snapshot: FleetSnapshot) => RoutePicker
  /** Routes the rest of a stream: only to nodes with the same base, if possible in the same number format. */
  reopen: (query: RouteQuery, like: Pick<FleetNode, 'baseDigest' | 'dtype'>) => RoutePicker
  /** Where a request would go now, as an index of the ring; nothing is counted. */
  preview: (query: RouteQuery, snapshot: FleetSnapshot) => RoutedPlacement | undefined
  /** In flight now on each node of the ring: as reported, and what this isolate has begun and ended since. */
  loads: (snapshot: FleetSnapshot) => Float64Array
  /** A node says with each reply how many requests it has, this one included: newer than what the registry passes on. */
  noteLoad: (nodeId: string, inFlight: number) => void
  /** The node did not answer: others come first until it has sent a heartbeat again. */
  suspect: (nodeId: string) => void
  isSuspect: (node: FleetNode) => boolean
}

export interface RoutedPlacement extends Placement {
  /** Decided among the nodes of the client's region alone. */
  isNear: boolean
}

export interface RouterOptions {
  now: () => number
  bound?: LoadBound
}

/** One an isolate, made at its start. */
export function createRouter({ now, bound = DEFAULT_LOAD_BOUND }: RouterOptions): Router {
  const inFlight = createInFlight(now)
  const hot = createHotAdapters(now)
  /** Of the snapshots that requests still use; brought up to date in place, since a decision reads a number for each node. */
  const views = new WeakMap<FleetSnapshot, Float64Array>()
  /** The newest snapshot in use: the one whose loads follow what begins and ends here. */
  let current: { snapshot: FleetSnapshot; loads: Float64Array; indices: Map<string, number> } | undefined
  /** `order` counts failures: many happen within one tick of a Worker's clock. */
  const failures = new Map<string, { at: number; order: number }>()
  let failureCount = 0

  /** Reported counts are moved from the time of the report to now when a snapshot is first used. */
  const loads = (snapshot: FleetSnapshot): Float64Array => {
    const known = views.get(snapshot)
    if (known !== undefined) {
      return known
    }
    const made = Float64Array.from(snapshot.ring.nodes, (node) =>
      Math.max(0, node.inFlight + inFlight.changeSince(node.nodeId, node.lastSeenAt)),
    )
    views.set(snapshot, made)
    current = {
      snapshot,
      loads: made,
      indices: new Map(snapshot.ring.nodes.map((node, index) => [node.nodeId, index])),
    }
    return made
  }

  const countOne = (nodeId: string, by: 1 | -1): void => {
    const index = current?.indices.get(nodeId)
    if (current !== undefined && index !== undefined) {
      current.loads[index] = Math.max(0, current.loads[index]! + by)
    }
  }

  const noteLoad = (nodeId: string, count: number): void => {
    const index = current?.indices.get(nodeId)
    if (current !== undefined && index !== undefined) {
      current.loads[index] = count
    }
  }

  const acquire = (nodeId: string): (() => void) => {
    const release = inFlight.acquire(nodeId)
    countOne(nodeId, 1)
    let released = false
    return () => {
      if (!released) {
        released = true
        release()
        countOne(nodeId, -1)
      }
    }
  }

  const isSuspect = (node: FleetNode): boolean => {
    // Asked of every node at every decision.
    const failure = failures.size === 0 ? undefined : failures.get(node.nodeId)
    if (failure === undefined) {
      return false
    }
    if (node.lastSeenAt > failure.at) {
      failures.delete(node.nodeId)
      return false
    }
    return true
  }

  const lastFailure = (node: FleetNode): number => failures.get(node.nodeId)?.order ?? 0

  /** The placement among some nodes, without those that are skipped. */
  const placeAmong = (
    { ring, loads: inFlightOf }: { ring: Ring<FleetNode>; loads: Float64Array },
    query: RouteQuery,
    owners: number,
    skipped: (node: FleetNode) => boolean,
  ): Placement | undefined => {
    const key = keyHash(query.placementKey, query.routingSecret)
    const tried = new Set<number>()
    for (let index = 0; index < ring.nodes.length; index++) {
      if (skipped(ring.nodes[index]!)) {
        tried.add(index)
      }
    }
    if (query.selection.kind === 'base') {
      return placeBase({ ring, loads: inFlightOf, key, tried })
    }
    const resident = residentHash(selectionKey(query.selection))
    return placeAdapter({ ring, loads: inFlightOf, key, tried, bound, owners, resident })
  }

  const nearOf = ({ region }: RouteQuery, snapshot: FleetSnapshot) =>
    region === undefined ? undefined : snapshot.regions.get(regionOf(region))

  /** Near the client, where a node has a row free; in the whole ring's indices. */
  const placeNear = (
    query: RouteQuery,
    snapshot: FleetSnapshot,
    owners: number,
    skipped: (node: FleetNode) => boolean,
  ): RoutedPlacement | undefined => {
    const near = nearOf(query, snapshot)
    if (near === undefined) {
      return undefined
    }
    const all = loads(snapshot)
    const nearLoads = Float64Array.from(near.indices, (index) => all[index]!)
    const placement = placeAmong({ ring: near.ring, loads: nearLoads }, query, owners, skipped)
    if (placement === undefined || nearLoads[placement.index]! >= near.ring.weights[placement.index]!) {
      return undefined
    }
    const prefetch = placement.prefetch === undefined ? undefined : near.indices[placement.prefetch]
    return { ...placement, index: near.indices[placement.index]!, prefetch, isNear: true }
  }

  /** `never` nodes are not taken, `later` ones only when no other is left: then those first that failed longest ago. */
  const choose = (
    query: RouteQuery,
    snapshot: FleetSnapshot,
    owners: number,
    never: (node: FleetNode) => boolean,
    later: (node: FleetNode) => boolean,
  ): RoutedPlacement | undefined => {
    const skipped = (node: FleetNode) => never(node) || later(node)
    const near = placeNear(query, snapshot, owners, skipped)
    if (near !== undefined) {
      return near
    }
    const whole = { ring: snapshot.ring, loads: loads(snapshot) }
    const placement = placeAmong(whole, query, owners, skipped) ?? placeAmong(whole, query, owners, failedLater())
    return placement === undefined ? undefined : { ...placement, isNear: false }

    function failedLater(): (node: FleetNode) => boolean {
      const left = snapshot.ring.nodes.filter((node) => !never(node))
      const oldest = Math.min(...left.map(lastFailure))
      return (node) => never(node) || lastFailure(node) > oldest
    }
  }

  const picker = (
    query: RouteQuery,
    owners: number,
    excluded: (node: FleetNode) => boolean,
    later: (node: FleetNode) => boolean,
  ): RoutePicker => {
    const tried = new Set<string>()
    return (snapshot) => {
      const never = (node: FleetNode) => (tried.size > 0 && tried.has(node.nodeId)) || excluded(node)
      const placement = choose(query, snapshot, owners, never, later)
      if (placement === undefined) {
        return undefined
      }
      const { nodes } = snapshot.ring
      const node = nodes[placement.index]!
      tried.add(node.nodeId)
      const prefetch = placement.prefetch === undefined ? undefined : nodes[placement.prefetch]
      return { node, reason: placement.reason, prefetch, release: acquire(node.nodeId) }
    }
  }

  const ownersOf = (query: RouteQuery) => hot.owners(keyHash(query.placementKey, query.routingSecret))

  return {
    bound,
    hot,
    loads,
    noteLoad,
    isSuspect,
    suspect: (nodeId) => {
      failureCount += 1
      failures.set(nodeId, { at: now(), order: failureCount })
    },
    open: (query, snapshot) => {
      const isBase = query.selection.kind === 'base'
      const key = keyHash(query.placementKey, query.routingSecret)
      const owners = isBase ? 1 : hot.note(key, (nearOf(query, snapshot) ?? snapshot).ring.nodes.length)
      return picker(query, owners, () => false, isSuspect)
    },
    reopen: (query, like) =>
      picker(
        query,
        ownersOf(query),
        (node) => node.baseDigest !== like.baseDigest,
        (node) => node.dtype !== like.dtype || isSuspect(node),
      ),
    preview: (query, snapshot) => choose(query, snapshot, ownersOf(query), () => false, isSuspect),
  }
}
