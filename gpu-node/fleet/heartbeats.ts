/** Keeps the edge informed of this node: joins with the first heartbeat, leaves with the last. Knows nothing of what runs. */

import { setTimeout as sleep } from 'node:timers/promises'
import type { z } from 'zod'
import {
  HEARTBEAT_INTERVAL_MS,
  HEARTBEAT_PATH,
  HEARTBEAT_SIGNATURE_HEADER,
  type HeartbeatAnswer,
  type heartbeatSchema,
  type ResidentAdapter,
} from '../../shared/fleet.ts'
import { signHeartbeat } from '../../shared/heartbeat-signature.ts'
import type { SigningKeys } from '../../shared/hmac.ts'
import { fetchFailure } from '../fetch-failure.ts'
import type { ReceivedKeys } from './received-keys.ts'

/** What a node says of itself at one moment; the sender adds `draining`, `leaving` and the residents' version. */
export type NodeDescription = Omit<
  z.input<typeof heartbeatSchema>,
  'draining' | 'leaving' | 'residentVersion' | 'resident'
> & {
  resident: readonly ResidentAdapter[]
}

export interface HeartbeatOptions {
  /** The edge's address; heartbeats go to `<edgeUrl>/fleet/heartbeat`. */
  edgeUrl: string
  joinKeys: SigningKeys
  describe: () => NodeDescription
  fetch: typeof fetch
  now: () => number
  log: (event: string, fields: Readonly<Record<string, string | number | boolean>>) => void
  /** The node was given no ticket keys: the edge's are asked for, and it drains until they are here. */
  ticketKeys?: ReceivedKeys
  intervalMs?: number
}

export interface Heartbeats {
  /** Resolves with the first accepted heartbeat: requests may come from now on. */
  joined: Promise<void>
  /** Sends one now instead of at the next interval; after an adapter was loaded or dropped, for example. */
  beat: () => void
  /** No new requests, please: tells the edge at once, and resolves when it has heard it (or can't be reached). */
  announceDrain: () => Promise<void>
  /** The last word: out of the ring. No heartbeat follows. */
  leave: () => Promise<void>
}

/** The edge answers in milliseconds; a heartbeat that takes longer than this is given up for the next one. */
const HEARTBEAT_TIMEOUT_MS = 5_000
/** However often `beat` is called. */
const MIN_GAP_MS = 200

export function startHeartbeats(options: HeartbeatOptions): Heartbeats {
  const { now, log, intervalMs = HEARTBEAT_INTERVAL_MS } = options
  const url = new URL(HEARTBEAT_PATH, options.edgeUrl).href
  const residents = createResidentVersions()
  let draining = false
  let stopped = false
  let wake = new AbortController()
  let reachable: boolean | undefined
  let lastSentAt = 0
  let resolveJoined: () => void
  const joined = new Promise<void>((resolve) => {
    resolveJoined = resolve
  })

  /** One heartbeat; `true` when the edge took it. Never throws: a node outlives its edge. */
  const send = async (leaving: boolean): Promise<boolean> => {
    const { resident, ...description } = options.describe()
    const versioned = residents.next(resident, leaving)
    // The edge ignores what was sent before the last one it took; two within a millisecond must differ.
    lastSentAt = Math.max(now(), lastSentAt + 1)
    const { ticketKeys } = options
    const keys = ticketKeys === undefined ? {} : { ticketKeysVersion: ticketKeys.version }
    const unready = ticketKeys !== undefined && ticketKeys.keys.length === 0
    const body = JSON.stringify({ ...description, draining: draining || unready, leaving, ...versioned, ...keys })
    try {
      const signature = await signHeartbeat(body, options.joinKeys, lastSentAt)
      const response = await options.fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/json', [HEARTBEAT_SIGNATURE_HEADER]: signature },
        body,
        signal: AbortSignal.timeout(HEARTBEAT_TIMEOUT_MS),
      })
      const text = await response.text()
      if (!response.ok) {
        noteReachable(false, `the edge answered ${response.status}: ${text.slice(0, 300)}`)
        return false
      }
      const answer = JSON.parse(text) as HeartbeatAnswer
      noteReachable(true, '')
      residents.taken(versioned.residentVersion, !answer.wantResident)
      if (answer.ticketKeys !== undefined && ticketKeys !== undefined) {
        await ticketKeys.receive(answer.ticketKeys, options.joinKeys)
        log('ticket_keys_received', { keys: ticketKeys.keys.length })
      }
      const listIsMissing = answer.wantResident && versioned.resident === undefined
      if (!leaving && (listIsMissing || (unready && ticketKeys.keys.length > 0))) {
        return await send(false)
      }
      resolveJoined()
      return true
    } catch (cause) {
      noteReachable(false, fetchFailure(cause))
      return false
    }
  }

  /** One line when the edge is lost, one when it is found again. */
  const noteReachable = (is: boolean, reason: string): void => {
    if (is !== reachable) {
      reachable = is
      log(is ? 'fleet_joined' : 'fleet_unreachable', is ? { edge: url } : { edge: url, reason })
    }
  }

  const loop = async (): Promise<void> => {
    while (!stopped) {
      const interrupted = wake.signal
      await send(false)
      await sleep(Math.min(MIN_GAP_MS, intervalMs))
      await sleep(intervalMs - MIN_GAP_MS, undefined, { signal: interrupted }).catch(() => undefined) // woken by `beat`
      wake = interrupted.aborted ? new AbortController() : wake
    }
  }
  const running = loop()

  const stop = async (): Promise<void> => {
    stopped = true
    wake.abort()
    await running
  }

  return {
    joined,
    beat: () => wake.abort(),
    announceDrain: async () => {
      draining = true
      await send(false)
    },
    leave: async () => {
      await stop()
      // Worth a second try: without it the edge needs three intervals to miss the node.
      if (!(await send(true))) {
        await send(true)
      }
    },
  }
}

/** The list of residents travels only when the edge lacks it: its version counts changes. */
function createResidentVersions() {
  let version = 0
  let spelled = ''
  let takenVersion = -1
  return {
    next: (resident: readonly ResidentAdapter[], leaving: boolean) => {
      const spelling = JSON.stringify(resident)
      if (spelling !== spelled) {
        spelled = spelling
        version += 1
      }
      const leftOut = leaving || version === takenVersion
      return { residentVersion: version, resident: leftOut ? undefined : resident }
    },
    taken: (of: number, known: boolean) => {
      takenVersion = known ? of : -1
    },
  }
}
