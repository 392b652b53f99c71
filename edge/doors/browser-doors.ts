/** What browsers are told: security headers on every answer, and other origins only where the operator named them. */

import type { MiddlewareHandler } from 'hono'
import { cors } from 'hono/cors'
import type { AppEnv } from '../app-types.ts'

/** Answers are data; nothing in them may run, be framed or be guessed to be of another type. */
const FOR_ALL = [
  ['x-content-type-options', 'nosniff'],
  ['x-frame-options', 'DENY'],
  ['referrer-policy', 'no-referrer'],
  ['strict-transport-security', 'max-age=15552000; includeSubDomains'],
] as const
const DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"

/** A page of ours says itself what may run in it. */
export function setSecurityHeaders(headers: Headers): void {
  for (const [name, value] of FOR_ALL) {
    headers.set(name, value)
  }
  if (headers.has('content-security-policy')) {
    headers.set('cross-origin-opener-policy', 'same-origin')
  } else {
    headers.set('content-security-policy', DATA_POLICY)
  }
}

/** Response headers that a page of another origin may read. */
const EXPOSED = [
  'x-request-id',
  'x-adapter-id',
  'x-adapter-source',
  'x-adapter-digest',
  'x-adapter-cache',
  'x-ringlet-node',
  'x-ringlet-ignored',
  'x-prompt-tokens',
  'x-generated-tokens',
  'server-timing',
  'retry-after',
]

/** By the settings that an isolate was given, so in practice one. */
const opened = new WeakMap<readonly string[], MiddlewareHandler<AppEnv>>()

/**
 * Without an origin in the settings no CORS header is sent, and browsers keep other origins out. Returns the answer to a
 * preflight, which goes no further.
 */
export const crossOrigin: MiddlewareHandler<AppEnv> = async (c, next) => {
  const origins = c.env.config.RINGLET_CORS_ORIGINS
  if (origins.length === 0) {
    // Not its own result, which is the context.
    await next()
    return
  }
  let open = opened.get(origins)
  if (open === undefined) {
    open = openTo(origins)
    opened.set(origins, open)
  }
  return open(c, next)
}

function openTo(origins: string[]): MiddlewareHandler<AppEnv> {
  return cors({
    origin: origins.includes('*') ? '*' : origins,
    allowMethods: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'],
    allowHeaders: [
      'authorization',
      'content-type',
      'last-event-id',
      'traceparent',
      'x-adapter-token',
      'x-progress',
      'x-request-id',
    ],
    exposeHeaders: EXPOSED,
    maxAge: 600,
  })
}
