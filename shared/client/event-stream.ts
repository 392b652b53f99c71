/**
 * A stream's events as values, over dropped connections: when one breaks before the stream's end, the client comes back
 * with the last event's id and the stream goes on after it.
 */

import { EventSourceParserStream } from 'eventsource-parser/stream'
import type { z } from 'zod'
import { isErrorData, RingletApiError, readApiError, toApiError } from './api-error.ts'

export interface EventStreamOptions<Schema extends z.ZodType> {
  schema: Schema
  /** `lastEventId`: where the connection before broke off. */
  connect: (lastEventId: string | undefined) => Promise<Response>
  /** Does this event end the stream? LoRAX's last token has the text; OpenAI says `[DONE]` instead. */
  isLast: (value: z.output<Schema>) => boolean
  onProgress?: (progress: StreamProgress) => void
  signal?: AbortSignal
  /** Connections after the first. */
  maxResumes: number
}

/** What `ringlet-progress` events tell while an adapter loads and a request waits. */
export interface StreamProgress {
  phase: 'resolve' | 'download' | 'load' | 'queued'
  receivedBytes?: number
  totalBytes?: number
  waiting?: number
}

const DONE = '[DONE]'

/** The first resume is tried at once, each further one after twice the pause: a phone that changes its network needs seconds. */
const FIRST_PAUSE_MS = 500

export async function* readEventStream<Schema extends z.ZodType>(
  options: EventStreamOptions<Schema>,
): AsyncGenerator<z.output<Schema>, void, undefined> {
  let lastEventId: string | undefined
  for (let resumes = 0; ; resumes++) {
    const isLastTry = resumes >= options.maxResumes || options.signal?.aborted === true
    try {
      const response = await options.connect(lastEventId)
      if (!response.ok || response.body === null) {
        throw await readApiError(response)
      }
      for await (const event of eventsOf(response.body)) {
        if (event.data === DONE) {
          return
        }
        const value: unknown = JSON.parse(event.data)
        if (event.event === 'ringlet-progress') {
          // Told by this endpoint in this shape; a newer one may tell more.
          options.onProgress?.(value as StreamProgress)
          continue
        }
        if (isErrorData(value)) {
          const requestId = response.headers.get('x-request-id') ?? undefined
          throw toApiError(event.data, { status: 200, requestId })
        }
        lastEventId = event.id ?? lastEventId
        const parsed = options.schema.parse(value)
        yield parsed
        if (options.isLast(parsed)) {
          return
        }
      }
    } catch (error) {
      if (isLastTry || options.signal?.aborted || lastEventId === undefined || !isBroken(error)) {
        throw error
      }
    }
    if (isLastTry || lastEventId === undefined) {
      throw toApiError('', { status: 200, code: 'stream_broken' })
    }
    await pause(resumes === 0 ? 0 : FIRST_PAUSE_MS * 2 ** (resumes - 1), options.signal)
  }
}

/** undici and browsers report a broken connection as a TypeError; an endpoint without a free node says 503. All else is final. */
function isBroken(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof RingletApiError && error.status === 503)
}

/** Ends early with the signal, whose reason the next connection throws. */
function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal?.addEventListener('abort', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}

async function* eventsOf(body: ReadableStream<Uint8Array>) {
  const events = body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())
  const reader = events.getReader()
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      yield read.value
    }
  } finally {
    // Leaving early closes the connection, and with it the generation.
    await reader.cancel().catch(() => undefined)
  }
}
