/** Why a request for an adapter goes where it goes: the same placement, told in full. For `GET /admin/explain`. */

import { type AdapterSelection, selectionKey } from '../../shared/adapter-ref.ts'
import type { AdapterTier } from '../../shared/fleet.ts'
import type { FleetNode, FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import { loadLimit } from './bounded-load.ts'
import { keyHash, residentHash } from './hash.ts'
import type { PlacementReason } from './place.ts'
import { type RegionRing, regionOf } from './regions.ts'
import { claim, rankOwners } from './ring.ts'
import type { Router } from './router.ts'

export interface ExplainedNode {
  nodeId: string
  region: string
  /** 1 is the first owner; absent while it drains, and outside the region where the choice was made. */
  rank?: number
  claim: number
  /** `none`: the node would have to fetch it. */
  tier: AdapterTier | 'none'
  inFlight: number
  limit: number
  withinBound: boolean
  draining: boolean
  /** It did not answer this isolate, and has not been heard since. */
  suspect: boolean
}

export interface PlacementExplanation {
  placementKey: string
  selectionKey: string
  /** More than 1 while the adapter is hot. */
  owners: number
  /** The adapter's part of this isolate's recent requests. */
  trafficShare: number
  /** The choice was made among this region's nodes alone; null: in the whole ring. */
  region: string | null
  chosen?: { nodeId: string; reason: PlacementReason; prefetchOn?: string }
  /** In the order of their claims; draining ones last, those of other regions behind them. */
  nodes: ExplainedNode[]
  /** Alive but not in the ring: of another base, or come and gone too often. */
  outsideRing: { nodeId: string; reason: 'base_differs' | 'damped' }[]
  snapshotTakenAt: number
}

export interface ExplainQuery {
  selection: AdapterSelection
  placementKey: string
  routingSecret: string
  /** The client's, as for a request. */
  region?: string | undefined
  snapshot: FleetSnapshot
  router: Pick<Router, 'loads' | 'hot' | 'bound' | 'isSuspect' | 'preview'>
}

export function explainPlacement(query: ExplainQuery): PlacementExplanation {
  const { selection, placementKey, routingSecret, region, snapshot, router } = query
  const { ring } = snapshot
  const key = keyHash(placementKey, routingSecret)
  const owners = router.hot.owners(key)
  const loads = router.loads(snapshot)
  const placement = router.preview({ selection, placementKey, routingSecret, region }, snapshot)
  const whole = explainRing({ ring, indices: ring.nodes.map((_, index) => index) }, loads, query)
  const near = placement?.isNear === true ? snapshot.regions.get(regionOf(region ?? '')) : undefined
  const nodes = near === undefined ? whole : explainRing(near, loads, query)
  const shown = new Set(nodes.map(({ nodeId }) => nodeId))
  const elsewhere = whole.filter(({ nodeId }) => !shown.has(nodeId)).map(({ rank: _, ...node }) => node)
  const inRing = new Set(ring.nodes)
  return {
    placementKey,
    selectionKey: selectionKey(selection),
    owners,
    trafficShare: router.hot.share(key),
    region: near === undefined ? null : regionOf(region ?? ''),
    ...(placement === undefined
      ? {}
      : {
          chosen: {
            nodeId: ring.nodes[placement.index]!.nodeId,
            reason: placement.reason,
            ...(placement.prefetch === undefined ? {} : { prefetchOn: ring.nodes[placement.prefetch]!.nodeId }),
          },
        }),
    nodes: [...nodes, ...elsewhere],
    outsideRing: snapshot.nodes
      .filter((node) => !inRing.has(node))
      .map((node) => ({ nodeId: node.nodeId, reason: node.damped ? 'damped' : 'base_differs' })),
    snapshotTakenAt: snapshot.takenAt,
  }
}

/** Claims and bounds as they are among these nodes; `loads` by the index in the whole ring. */
function explainRing(
  { ring, indices }: RegionRing<FleetNode>,
  loads: Float64Array,
  query: ExplainQuery,
): ExplainedNode[] {
  const { selection, placementKey, routingSecret, router } = query
  const key = keyHash(placementKey, routingSecret)
  const resident = residentHash(selectionKey(selection))
  const total = indices.reduce((sum, index) => sum + loads[index]!, 0)
  const ranked = rankOwners(ring, key, ring.nodes.length)
  const draining = ring.nodes.flatMap((node, index) => (node.draining ? [index] : []))
  return [...ranked, ...draining].map((index, position): ExplainedNode => {
    const node = ring.nodes[index]!
    const inFlight = loads[indices[index]!]!
    const limit = loadLimit(ring.weights[index]!, ring.totalWeight, total, router.bound)
    return {
      nodeId: node.nodeId,
      region: node.region,
      ...(node.draining ? {} : { rank: position + 1 }),
      claim: claim(ring, index, key),
      tier: node.resident.tierOf(resident) ?? 'none',
      inFlight,
      limit,
      withinBound: inFlight < limit,
      draining: node.draining,
      suspect: router.isSuspect(node),
    }
  })
}
