/** Every error that leaves the edge: in the shape that the route's clients know, with nothing in it that is not theirs. */

import { HTTPException } from 'hono/http-exception'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { RingletError, statusOf, toLoraxError, toOpenAiError } from '../../shared/errors.ts'
import type { AppContext } from '../app-types.ts'

export function replyWithError(error: unknown, c: AppContext): Response {
  if (c.req.raw.signal.aborted) {
    // Nobody reads it; nginx's status for a client that closed its request, so that the log tells it from a fault.
    c.get('requestLog').error = 'client_gone'
    return new Response(null, { status: 499 })
  }
  const known = toRingletError(error)
  if (known.code === 'internal') {
    c.env.log('error', { requestId: c.get('requestId'), ...describe(error) })
  }
  c.get('requestLog').error = known.code
  if (known.retryAfterSeconds !== undefined) {
    c.header('retry-after', String(Math.ceil(known.retryAfterSeconds)))
  }
  if (known.kind.status === 401) {
    c.header('www-authenticate', 'Bearer')
  }
  const body = c.get('errorStyle') === 'openai' ? toOpenAiError(known) : toLoraxError(known)
  return c.json(body, statusOf(known, c.get('errorStyle')) as ContentfulStatusCode)
}

function toRingletError(error: unknown): RingletError {
  if (error instanceof RingletError) {
    return error
  }
  if (error instanceof HTTPException && error.status < 500) {
    return new RingletError('body_malformed', 'the request could not be read', { cause: error })
  }
  return new RingletError('internal', 'the request failed inside the edge', { cause: error })
}

/**
 * Frames tell where; the text of an error may quote a body or a token, so it stays out, but for the database's, which names
 * tables and never values.
 */
function describe(error: unknown): Record<string, string> {
  if (!(error instanceof Error)) {
    return { kind: typeof error }
  }
  const frames = (error.stack ?? '').split('\n').filter((line) => /^\s+at /.test(line))
  const message = error.message.startsWith('D1_ERROR') || error.message.startsWith("the Worker's settings")
  return {
    kind: error.name,
    ...(message ? { message: error.message } : {}),
    at: frames.slice(0, 4).join(' | ').replaceAll(/\s+/g, ' '),
  }
}
