/** An isolate's picture of the fleet: a second or two old, refreshed behind requests, kept while the registry is slow. */

import { createFleetSnapshot, type FleetNode, type FleetSnapshot } from './fleet-snapshot.ts'
import { createResidentIndex, NO_RESIDENTS } from './resident-index.ts'
import type { ShardReader, ShardReport } from './shard-report.ts'
import { withTimeout } from './with-timeout.ts'

/** Older than this, the next request refreshes it. */
const REFRESH_MS = 1_000
/** A request waits for the registry only when the picture is older than this, or there is none yet. */
const STALE_MS = 10_000
/** Longest wait for a shard; after it the nodes known of that shard stay as they were. */
const SHARD_TIMEOUT_MS = 1_500

export interface FleetView {
  /**
   * `waitUntil` keeps the request's context alive for a refresh that nobody waits for. A picture of `longestAgeMs` (ten seconds)
   * or more is waited for; 0 always reads.
   */
  snapshot: (
    registry: ShardReader,
    waitUntil: (work: Promise<unknown>) => void,
    longestAgeMs?: number,
  ) => Promise<FleetSnapshot>
}

export interface FleetViewOptions {
  now: () => number
  shardTimeoutMs?: number
}

interface ShardState {
  run: string
  cursor: number
  nodes: Map<string, FleetNode>
  allSilent: boolean
}

/** One an isolate, made at its start. */
export function createFleetView(options: FleetViewOptions): FleetView {
  const { now, shardTimeoutMs = SHARD_TIMEOUT_MS } = options
  let shards: ShardState[] = []
  let held: FleetSnapshot | undefined
  /** When a refresh began that has not ended. Not a promise: one request must not wait for another's I/O in workerd. */
  let refreshingSince: number | undefined
  /** When the last refresh ended, whatever it brought: a shard that hangs makes one request in ten seconds wait, not each. */
  let refreshedAt = Number.NEGATIVE_INFINITY

  const refresh = async (registry: ShardReader): Promise<void> => {
    const startedAt = now()
    refreshingSince = startedAt
    if (shards.length !== registry.shards) {
      shards = Array.from({ length: registry.shards }, () => ({
        run: '',
        cursor: -1,
        nodes: new Map(),
        allSilent: false,
      }))
    }
    const current = shards
    const answers = await Promise.all(
      current.map(async (state, shard) => {
        const { run, cursor } = state
        const report = await withTimeout(registry.read(shard, run, cursor), shardTimeoutMs)
        // Two refreshes may overlap; the later cursor wins.
        if (report !== undefined && !(state.run === report.run && state.cursor > report.cursor)) {
          current[shard] = applyReport(state, report, now())
        }
        return report !== undefined
      }),
    )
    if (refreshingSince === startedAt) {
      refreshingSince = undefined
    }
    refreshedAt = now()
    if (answers.some((answered) => answered) || held === undefined) {
      const { nodes, silent } = presentNodes(current)
      const takenAt = answers.every((answered) => answered) ? now() : (held?.takenAt ?? 0)
      held = createFleetSnapshot(nodes, takenAt, silent)
    }
  }

  return {
    snapshot: async (registry, waitUntil, longestAgeMs = STALE_MS) => {
      const age = now() - refreshedAt
      // A refresh whose request was cancelled never ends; after its longest time another may start.
      const busy = refreshingSince !== undefined && now() - refreshingSince < 2 * shardTimeoutMs
      if (held !== undefined && age < longestAgeMs && (age < REFRESH_MS || busy)) {
        return held
      }
      const work = refresh(registry)
      waitUntil(work)
      if (held === undefined || age >= longestAgeMs) {
        await work
      }
      return held ?? createFleetSnapshot([], 0)
    },
  }
}

function applyReport(state: ShardState, report: ShardReport, now: number): ShardState {
  const changed = new Map(report.residents.map(({ nodeId, hashes }) => [nodeId, createResidentIndex(hashes)]))
  const nodes = report.nodes.map(({ report: node, ageMs, damped }): FleetNode => {
    // A restarted shard has not heard the lists again yet; a restarted node holds nothing of what it held.
    const before = state.nodes.get(node.nodeId)
    const kept = before?.bootId === node.bootId ? before.resident : NOTHING_RESIDENT
    return { ...node, lastSeenAt: now - ageMs, damped, resident: changed.get(node.nodeId) ?? kept }
  })
  const { run, cursor, allSilent } = report
  return { run, cursor, allSilent, nodes: new Map(nodes.map((node) => [node.nodeId, node])) }
}

/** While any node is heard, those of a shard that hears none are gone. */
function presentNodes(shards: readonly ShardState[]): { nodes: FleetNode[]; silent: boolean } {
  const heard = shards.filter(({ allSilent, nodes }) => !allSilent && nodes.size > 0)
  const nodes = (heard.length > 0 ? heard : shards).flatMap((shard) => [...shard.nodes.values()])
  return { nodes, silent: heard.length === 0 && nodes.length > 0 }
}

const NOTHING_RESIDENT = createResidentIndex(NO_RESIDENTS)
