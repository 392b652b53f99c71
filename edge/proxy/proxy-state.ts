/** What one isolate's proxy remembers between requests: routing state, retry budget, hints lately sent, and its timings. */

import type { LoadBound } from '../routing/bounded-load.ts'
import { createRouter, type Router } from '../routing/router.ts'
import { createRetryBudget, type RetryBudget } from './retry-budget.ts'

export interface ProxyTimings {
  /** Wait for a stream's headers; a cold adapter may have to come over a slow line. */
  streamHeadersMs: number
  /** Wait for a whole JSON reply. */
  replyMs: number
  /** A stream without a byte for this long is continued elsewhere; nodes send comments when there is nothing else. */
  stallMs: number
  /** How often a silent node is looked up in the fleet: one that left the ring is given up. */
  watchMs: number
  /**
   * A client that takes nothing for this long has left: when a write to it fails, workerd may drop the stream without a
   * word. Below the 30 s for which Cloudflare keeps a request's context after that.
   */
  clientIdleMs: number
  /** A broken stream waits this long for a node that can continue it. */
  patienceMs: number
  /** Pause between two looks at the fleet while waiting for one. */
  patienceStepMs: number
  /** Most nodes tried for one request before its first byte, and for each continuation of a stream. */
  attempts: number
}

export const DEFAULT_TIMINGS: ProxyTimings = {
  streamHeadersMs: 60_000,
  replyMs: 600_000,
  stallMs: 60_000,
  watchMs: 2_000,
  clientIdleMs: 20_000,
  patienceMs: 20_000,
  patienceStepMs: 250,
  attempts: 4,
}

export interface ProxyState {
  router: Router
  retryBudget: RetryBudget
  timings: ProxyTimings
  /** `<node id>\0<selection key>` of prefetch hints, with the time they were sent. */
  hints: Map<string, number>
}

export interface ProxyStateOptions {
  now: () => number
  bound?: LoadBound
  timings?: Partial<ProxyTimings>
}

export function createProxyState({ now, bound, timings }: ProxyStateOptions): ProxyState {
  return {
    router: createRouter(bound === undefined ? { now } : { now, bound }),
    retryBudget: createRetryBudget(now),
    timings: { ...DEFAULT_TIMINGS, ...timings },
    hints: new Map(),
  }
}
