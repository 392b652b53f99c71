/** One line of JSON for each request, when its headers are sent. Names, numbers and codes only: no header, token or body text. */

import { matchedRoutes } from 'hono/route'
import type { AppContext } from '../app-types.ts'

export function logRequest(c: AppContext, startedAt: number): void {
  if (c.res.ok && (c.env.config.RINGLET_ACCESS_LOG === 'errors' || isRoutine(c))) {
    return
  }
  const node = c.res.headers.get('x-ringlet-node')
  c.env.log('request', {
    requestId: c.get('requestId'),
    trace: c.get('traceparent').slice(3, 35),
    method: c.req.method,
    route: routeOf(c),
    status: c.res.status,
    ms: Math.round(c.env.now() - startedAt),
    ...(node === null ? {} : { node }),
    ...c.get('requestLog'),
  })
}

/** Heartbeats and health checks that found all well: each node and each load balancer would write a line every two seconds. */
function isRoutine(c: AppContext): boolean {
  const { method, path } = c.req
  return path === '/fleet/heartbeat' || (method === 'GET' && (path === '/health' || path === '/ping' || path === '/'))
}

/** The route's pattern, not the path: what a caller wrote stays out of the log. Patterns with `*` are doors, not routes. */
function routeOf(c: AppContext): string {
  return (
    matchedRoutes(c)
      .filter((route) => !route.path.includes('*'))
      .at(-1)?.path ?? 'none'
  )
}
