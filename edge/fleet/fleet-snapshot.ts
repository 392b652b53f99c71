/** What an isolate knows of the fleet: the nodes that are alive, as of a second or two ago. */

import type { ResidentIndex } from '../routing/place.ts'
import { createRegionRings, type RegionRing } from '../routing/regions.ts'
import { createRing, type Ring } from '../routing/ring.ts'
import type { NodeReport } from './membership.ts'

/** A node as it last reported itself. */
export interface FleetNode extends NodeReport {
  /** Unix milliseconds of its last heartbeat, by the clock of the isolate that holds this. */
  lastSeenAt: number
  /** It came and went too often lately: used only where no other node is left. */
  damped: boolean
  resident: ResidentIndex
}

export interface FleetSnapshot {
  /** Alive nodes only; draining ones are in it, marked. Sorted by node id. */
  nodes: readonly FleetNode[]
  /** The names under which the ring's nodes serve their base, without doubles: what a request can be answered by. */
  baseModels: readonly string[]
  /** No node was heard lately; `nodes` are the last that were. */
  silent: boolean
  /** Most positions that a sequence may have on any node; 0 without nodes. */
  longestPositions: number
  /** Unix milliseconds, when this isolate last heard from the registry. */
  takenAt: number
  /**
   * The nodes that requests go to: steady ones that agree on the base. During a change of base weights the larger part of
   * the fleet forms the ring, and the others wait until they are that part.
   */
  ring: Ring<FleetNode>
  /** The ring's nodes by region (`regionOf`). */
  regions: ReadonlyMap<string, RegionRing<FleetNode>>
}

export function createFleetSnapshot(nodes: readonly FleetNode[], takenAt: number, silent = false): FleetSnapshot {
  const sorted = [...nodes].sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1))
  const steady = sorted.filter((node) => !node.damped)
  const ring = createRing(withOneBase(steady.length > 0 ? steady : sorted))
  return {
    nodes: sorted,
    baseModels: [...new Set(ring.nodes.map((node) => node.baseModel))],
    silent,
    longestPositions: sorted.reduce((most, node) => Math.max(most, node.maxPositions), 0),
    takenAt,
    ring,
    regions: createRegionRings(ring),
  }
}

/** Those that share the base with the most capacity; of equal ones, the first by digest. */
function withOneBase(nodes: readonly FleetNode[]): FleetNode[] {
  const capacities = new Map<string, number>()
  for (const node of nodes) {
    capacities.set(node.baseDigest, (capacities.get(node.baseDigest) ?? 0) + (node.draining ? 0 : node.maxSequences))
  }
  let chosen: string | undefined
  for (const digest of [...capacities.keys()].sort()) {
    if (chosen === undefined || capacities.get(digest)! > capacities.get(chosen)!) {
      chosen = digest
    }
  }
  return nodes.filter((node) => node.baseDigest === chosen)
}
