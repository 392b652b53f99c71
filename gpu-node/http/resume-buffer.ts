/**
 * Streams whose client may come back: for each, the tokens sent and in which order, for a minute. The edge asks for them when a
 * client reconnects with the same request id and body and its `Last-Event-ID`.
 */

import { LRUCache } from 'lru-cache'
import { type AdapterSelection, selectionKey } from '../../shared/adapter-ref.ts'
import { RingletError } from '../../shared/errors.ts'
import { parseEventId, type ResumePoint } from '../../shared/stream-resume.ts'
import type { Delivered, Ticket } from '../../shared/ticket.ts'

/** Streams remembered at once; each a few bytes a token. */
const MAX_STREAMS = 4096

export interface ResumeKey {
  tenantId: string
  requestId: string
  /** As the ticket has it: an alias or a branch may mean another adapter by now. */
  adapter: AdapterSelection
  /** Of route and body: another request under the same id is not resumed. */
  fingerprint: string
}

/** What must be the same for the same text to come. */
export type ResumeOrigin = Pick<Ticket, 'seed' | 'createdAt'>

export interface OpenStream {
  note(eventId: string): void
  /** An adapter answers, or the base. */
  answeredBy(digest: string | undefined): void
}

export interface ResumeBuffer {
  /** Remembers a stream from here on; `note` takes the id of each event sent. */
  open(key: ResumeKey, origin: ResumeOrigin, delivered: Delivered): OpenStream
  /** Throws `resume_unknown`. */
  find(key: ResumeKey, lastEventId: string): ResumePoint
}

interface SentStream {
  origin: ResumeOrigin
  digest: string | undefined
  /** All tokens by choice, those delivered before included. */
  tokens: Map<number, number[]>
  /** Tokens by choice when the stream opened here. */
  before: Map<number, number>
  /** How many tokens of which choice the client had with each event, in order. */
  events: { choice: number; count: number }[]
}

export function createResumeBuffer(ttlMs: number): ResumeBuffer {
  const streams = new LRUCache<string, SentStream>({ max: MAX_STREAMS, ttl: ttlMs, updateAgeOnGet: false })
  const spell = (key: ResumeKey): string =>
    JSON.stringify([key.tenantId, key.requestId, selectionKey(key.adapter), key.fingerprint])
  return {
    open: (key, origin, delivered) => {
      const known = new Map(Object.entries(delivered).map(([choice, tokens]) => [Number(choice), tokens]))
      const name = spell(key)
      // A client that came back to this node: what it has by now keeps its history.
      const earlier = streams.get(name)
      const stream: SentStream = {
        origin: { seed: origin.seed, createdAt: origin.createdAt },
        digest: earlier?.digest,
        tokens: new Map([...known].map(([choice, tokens]) => [choice, [...tokens]])),
        before: earlier?.before ?? new Map([...known].map(([choice, tokens]) => [choice, tokens.length])),
        events: earlier?.events.filter(({ choice, count }) => count <= (known.get(choice)?.length ?? 0)) ?? [],
      }
      // What is too old to be resumed is a caller's text, kept for nothing.
      streams.purgeStale()
      streams.set(name, stream)
      return {
        answeredBy: (digest) => {
          stream.digest = digest
        },
        note: (eventId) => {
          const event = parseEventId(eventId)
          if (event !== undefined) {
            const tokens = stream.tokens.get(event.choice) ?? []
            tokens.push(...event.tokenIds)
            stream.tokens.set(event.choice, tokens)
            stream.events.push({ choice: event.choice, count: event.count })
            // The minute counts from the last event.
            streams.set(name, stream)
          }
        },
      }
    },
    find: (key, lastEventId) => {
      const stream = streams.get(spell(key))
      const event = parseEventId(lastEventId)
      const counts = stream === undefined || event === undefined ? undefined : countsAt(stream, event)
      if (stream === undefined || counts === undefined) {
        throw new RingletError('resume_unknown', 'this stream cannot be resumed: unknown, changed, or too long ago')
      }
      const delivered = [...counts].map(([choice, count]) => [choice, stream.tokens.get(choice)?.slice(0, count) ?? []])
      return { ...stream.origin, digest: stream.digest ?? null, delivered: Object.fromEntries(delivered) }
    },
  }
}

/** Tokens of each choice that a client had when it saw this event last; `undefined` when it was never sent. */
function countsAt(stream: SentStream, last: { choice: number; count: number }): Map<number, number> | undefined {
  const at = stream.events.findLastIndex(({ choice, count }) => choice === last.choice && count === last.count)
  if (at < 0) {
    // An event of the node that served the stream before: enough if there is one choice.
    const tokens = stream.tokens.get(last.choice)
    return stream.tokens.size === 1 && tokens !== undefined && last.count <= tokens.length
      ? new Map([[last.choice, last.count]])
      : undefined
  }
  const counts = new Map(stream.before)
  for (const { choice, count } of stream.events.slice(0, at + 1)) {
    counts.set(choice, count)
  }
  return counts
}
