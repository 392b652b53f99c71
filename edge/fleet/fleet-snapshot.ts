/** What an isolate knows of the fleet: the nodes that are alive, as of a second or two ago. */

import type { Heartbeat } from '../../shared/fleet.ts'

/** A node as it last reported itself. */
export interface FleetNode extends Heartbeat {
  /** Unix milliseconds of its last heartbeat, by the registry's clock. */
  lastSeenAt: number
}

export interface FleetSnapshot {
  /** Alive nodes only; draining ones are in it, marked. Sorted by node id. */
  nodes: readonly FleetNode[]
  /** The names of the bases that the nodes serve, without doubles. */
  baseModels: readonly string[]
  /** Unix milliseconds, when the registry made it. */
  takenAt: number
}
