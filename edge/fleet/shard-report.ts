/** What a registry shard tells an isolate. */

import type { NodeReport } from './membership.ts'
import type { ResidentHashes } from './resident-index.ts'

/** Times are ages, so that no two clocks are compared. */
export interface ShardReport {
  /** Random per start of the shard; cursors of another run mean nothing. */
  run: string
  cursor: number
  nodes: { report: NodeReport; ageMs: number; damped: boolean }[]
  /** `Present.allSilent`: `nodes` are the last that were heard. */
  allSilent: boolean
  /** Only of nodes whose residents changed after the asked cursor. */
  residents: { nodeId: string; hashes: ResidentHashes }[]
}

/** The registry as an isolate reads it; `cursor` of `run` is what it has seen of that shard. */
export interface ShardReader {
  shards: number
  read: (shard: number, run: string, cursor: number) => Promise<ShardReport>
}
