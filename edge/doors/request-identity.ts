/** Each request's id and its place in a trace: the caller's where they are well formed, new ones otherwise. */

import type { AppContext } from '../app-types.ts'
import { toHex } from '../hex.ts'

const REQUEST_ID = /^[A-Za-z0-9._:-]{1,128}$/
/** W3C Trace Context §3.2.2, version 00; ids of zeros are invalid. */
const TRACEPARENT = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})$/

export function identify(c: AppContext): void {
  const given = c.req.header('x-request-id')
  c.set('requestId', given !== undefined && REQUEST_ID.test(given) ? given : crypto.randomUUID())
  c.set('traceparent', nextTraceparent(c.req.header('traceparent')))
  c.set('errorStyle', c.req.path.startsWith('/v1/') ? 'openai' : 'lorax')
  c.set('timings', [])
  c.set('requestLog', {})
}

/** The caller's trace goes on with a span of ours; without one, a trace begins (not sampled: nobody asked for it). */
export function nextTraceparent(given: string | undefined): string {
  const random = toHex(crypto.getRandomValues(new Uint8Array(24)))
  const [, traceId = random.slice(16), flags = '00'] = (given === undefined ? null : TRACEPARENT.exec(given)) ?? []
  return `00-${traceId}-${random.slice(0, 16)}-${flags}`
}
