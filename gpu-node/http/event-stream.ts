/**
 * A reply as server-sent events: heartbeats while nothing is said, one end. A stream that ended, well or with an error
 * event, closes after the comment `: end`; one that another node should go on with closes without it.
 */

import type { Context } from 'hono'
import { streamSSE } from 'hono/streaming'
import type { RingletError } from '../../shared/errors.ts'

/** The edge reads it to know that the stream is complete. */
const END_COMMENT = ': end\n\n'
const HEARTBEAT_COMMENT = ':\n\n'

export interface EventWriter {
  /** `id`: as shared/stream-resume.ts has it, for events that carry tokens. */
  send(data: string, id?: string): Promise<void>
  /** For a stream whose headers went out before this was known; the edge reads it. */
  started(digest: string | undefined, promptTokens: number): Promise<void>
  /** The id names no token; the edge passes an event with an id on at once. */
  progress(progress: object, id: string): Promise<void>
}

export interface EventStreamOptions {
  headers: Record<string, string>
  heartbeatMs: number
  /** Called once when the client leaves or the stream ends; `code`: `ok`, `client_gone` or an error's. */
  onClosed: (code: string) => void
  /** Data of an error event, in the API's shape. */
  errorData: (error: RingletError) => string
  toError: (error: unknown) => RingletError
  /** Called with the id of each event before it goes out. */
  onSent: (eventId: string) => void
  /** Writes all events. A throw becomes an error event, or a break where another node could go on. */
  write: (events: EventWriter) => Promise<void>
}

export function eventStream(c: Context, options: EventStreamOptions): Response {
  for (const [name, value] of Object.entries(options.headers)) {
    c.header(name, value)
  }
  c.header('x-accel-buffering', 'no')
  return streamSSE(c, async (stream) => {
    let spoken = false
    let closed = false
    const close = (code: string): void => {
      if (!closed) {
        closed = true
        clearInterval(heartbeat)
        options.onClosed(code)
      }
    }
    stream.onAbort(() => close('client_gone'))
    const heartbeat = setInterval(() => {
      if (!spoken) {
        void stream.write(HEARTBEAT_COMMENT)
      }
      spoken = false
    }, options.heartbeatMs)
    const writer: EventWriter = {
      send: (data, id) => {
        spoken = true
        if (id !== undefined) {
          options.onSent(id)
        }
        return stream.writeSSE(id === undefined ? { data } : { data, id })
      },
      started: async (digest, promptTokens) => {
        await stream.write(`: started ${digest ?? 'base'} ${promptTokens}\n\n`)
      },
      progress: (progress, id) => {
        spoken = true
        return stream.writeSSE({ event: 'ringlet-progress', data: JSON.stringify(progress), id })
      },
    }
    try {
      await options.write(writer)
      await stream.write(END_COMMENT)
      close('ok')
    } catch (thrown) {
      const error = options.toError(thrown)
      if (!stream.aborted && !error.kind.retryElsewhere) {
        await writer.send(options.errorData(error))
        await stream.write(END_COMMENT)
      }
      close(stream.aborted ? 'client_gone' : error.code)
    }
  })
}
