/** How a node goes: it says so, hands over, finishes what runs, and leaves. The order is the whole of this file. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { Heartbeats } from './heartbeats.ts'

/**
 * While a draining node still answers, the edge sends requests for its adapters to it until their next owners have loaded
 * them. Long enough for a heartbeat, the edge's refresh (1 s) and a load from a disk or a near home.
 */
export const HANDOVER_MS = 4_000
/** What still runs after this is cut; the edge continues its streams on other nodes. */
export const DRAIN_DEADLINE_MS = 60_000

export interface DrainOptions {
  heartbeats: Pick<Heartbeats, 'announceDrain' | 'leave'>
  /** Requests in flight on this node. */
  inFlight: () => number
  /** New requests get `node_draining` from now on. */
  stopAccepting: () => void
  /** Resolves when nothing is in flight. */
  whenIdle: () => Promise<void>
  handoverMs?: number
  deadlineMs?: number
  /** Aborted by a second signal from the operator: skip the waiting. */
  hurry?: AbortSignal
}

/** `finished: false`: the deadline came, or the operator was in a hurry, and some requests still ran. */
export async function drainNode(options: DrainOptions): Promise<{ finished: boolean }> {
  const { heartbeats, inFlight, stopAccepting, whenIdle, hurry } = options
  await heartbeats.announceDrain()
  // Nobody to hand over to mid-work: an idle node's adapters are loaded by their next owners when they are asked for.
  if (inFlight() > 0) {
    await pause(options.handoverMs ?? HANDOVER_MS, hurry)
  }
  stopAccepting()
  const stopWaiting = new AbortController()
  const deadline = pause(options.deadlineMs ?? DRAIN_DEADLINE_MS, anyOf(hurry, stopWaiting.signal))
  await Promise.race([whenIdle(), deadline])
  stopWaiting.abort()
  await heartbeats.leave()
  return { finished: inFlight() === 0 }
}

async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  // An abort ends the pause early; it is no failure.
  await sleep(ms, undefined, signal === undefined ? {} : { signal }).catch(() => undefined)
}

function anyOf(a: AbortSignal | undefined, b: AbortSignal): AbortSignal {
  return a === undefined ? b : AbortSignal.any([a, b])
}
