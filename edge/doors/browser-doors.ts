/** What browsers are told: security headers on every answer, and other origins only where the operator named them. */

import { cors } from 'hono/cors'
import { createMiddleware } from 'hono/factory'
import { secureHeaders } from 'hono/secure-headers'
import type { AppEnv } from '../app-types.ts'

/** Answers are data; nothing in them may run, be framed or be guessed to be of another type. */
const forData = secureHeaders({
  contentSecurityPolicy: { defaultSrc: ["'none'"], frameAncestors: ["'none'"] },
  crossOriginResourcePolicy: false,
})

/** A page of ours says itself what may run in it. */
export const securityHeaders = createMiddleware<AppEnv>(async function securityHeaders(c, next) {
  let own: string | null = null
  await forData(c, async () => {
    await next()
    own = c.res.headers.get('content-security-policy')
  })
  if (own !== null) {
    c.res.headers.set('content-security-policy', own)
  }
})

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

/** Without an origin in the settings no CORS header is sent, and browsers keep other origins out. */
export const crossOrigin = createMiddleware<AppEnv>(async function crossOrigin(c, next) {
  const origins = c.env.config.RINGLET_CORS_ORIGINS
  if (origins.length === 0) {
    return next()
  }
  const open = cors({
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
  return open(c, next)
})
