/** When a node is in the ring: what one record of the registry says after a heartbeat, a silence, a drain. Pure. */

import { HEARTBEAT_INTERVAL_MS, type Heartbeat } from '../../shared/fleet.ts'

/** A heartbeat without what travels or is kept apart. */
export type NodeReport = Omit<Heartbeat, 'resident' | 'residentVersion' | 'leaving' | 'ticketKeysVersion'>

/** Silent for three intervals: out of the ring. */
export const SILENCE_MS = 3 * HEARTBEAT_INTERVAL_MS
/** A node that is out is remembered this long, for its flaps. */
const MEMORY_MS = 10 * 60_000

/** Penalties as BGP damps flapping routes (RFC 2439): each return adds one, time halves them. */
const PENALTY_HALF_LIFE_MS = 30_000
const DAMP_ABOVE = 2.5
const REUSE_BELOW = 1

export interface NodeRecord {
  report: NodeReport
  /** By the registry's clock. */
  lastSeenAt: number
  /** By the node's clock; a heartbeat sent earlier than the last accepted one is ignored. */
  sentAt: number
  left: boolean
  drainAsked: boolean
  penalty: number
  penaltyAt: number
  damped: boolean
}

/** `undefined`: the heartbeat is older than one that was already taken. */
export function afterHeartbeat(
  known: NodeRecord | undefined,
  heartbeat: Heartbeat,
  sentAt: number,
  now: number,
): NodeRecord | undefined {
  const { resident: _resident, residentVersion: _version, ticketKeysVersion: _keys, leaving, ...report } = heartbeat
  if (known === undefined) {
    const first = { penalty: 0, penaltyAt: now, damped: false, drainAsked: false }
    return { report, lastSeenAt: now, sentAt, left: leaving, ...first }
  }
  if (sentAt <= known.sentAt) {
    return undefined
  }
  // A clean leave and return is a restart by an operator. A return after silence, or as a new process without a farewell,
  // is a flap: two processes under one id look like this too.
  const restarted = known.report.bootId !== report.bootId
  const flapped = !known.left && (!isAlive(known, now) || restarted)
  const penalty = penaltyAt(known, now) + (flapped ? 1 : 0)
  return {
    report,
    lastSeenAt: now,
    sentAt,
    left: leaving,
    drainAsked: known.drainAsked && !restarted,
    penalty,
    penaltyAt: now,
    damped: penalty > DAMP_ABOVE || (known.damped && penalty >= REUSE_BELOW),
  }
}

export function isAlive(record: NodeRecord, now: number): boolean {
  return !record.left && now - record.lastSeenAt < SILENCE_MS
}

export interface Present {
  records: NodeRecord[]
  /**
   * Nobody was heard lately: more likely the heartbeats don't come through (a join secret changed on one side, a line is cut) than
   * that all nodes died together. `records` are then those that were alive when the last one was heard, and worth a try.
   */
  allSilent: boolean
}

export function presentRecords(known: Iterable<NodeRecord>, now: number): Present {
  const staying = [...known].filter((record) => !record.left && !isForgotten(record, now))
  const alive = staying.filter((record) => isAlive(record, now))
  if (alive.length > 0) {
    return { records: alive, allSilent: false }
  }
  const lastHeardAt = Math.max(...staying.map((record) => record.lastSeenAt))
  const last = staying.filter((record) => lastHeardAt - record.lastSeenAt < SILENCE_MS)
  return { records: last, allSilent: last.length > 0 }
}

export function isForgotten(record: NodeRecord, now: number): boolean {
  return now - record.lastSeenAt > MEMORY_MS
}

export function isDraining(record: NodeRecord): boolean {
  return record.drainAsked || record.report.draining
}

function penaltyAt(record: NodeRecord, now: number): number {
  return record.penalty * 2 ** (-(now - record.penaltyAt) / PENALTY_HALF_LIFE_MS)
}
