/** One line of JSON for each request, when its headers are sent. Names, numbers and codes only: no header, token or body text. */

import { createMiddleware } from 'hono/factory'
import { matchedRoutes } from 'hono/route'
import type { AppContext, AppEnv } from '../app-types.ts'

/** Filled by those who learn it. */
export interface RequestLog {
  tenant?: string
  keyId?: string
  adapter?: string
  error?: string
}

export const requestLog = createMiddleware<AppEnv>(async function requestLog(c, next) {
  const startedAt = c.env.now()
  await next()
  if (c.env.config.RINGLET_ACCESS_LOG === 'errors' && c.res.ok) {
    return
  }
  const node = c.res.headers.get('x-ringlet-node')
  c.env.log('request', {
    requestId: c.var.requestId,
    trace: c.var.traceparent.slice(3, 35),
    method: c.req.method,
    route: routeOf(c),
    status: c.res.status,
    ms: Math.round(c.env.now() - startedAt),
    ...(node === null ? {} : { node }),
    ...c.var.requestLog,
  })
})

/** The route's pattern, not the path: what a caller wrote stays out of the log. Patterns with `*` are doors, not routes. */
function routeOf(c: AppContext): string {
  return (
    matchedRoutes(c)
      .filter((route) => !route.path.includes('*'))
      .at(-1)?.path ?? 'none'
  )
}
