/** The node's HTTP side put together: routes, one place for errors, one log line a request. */

import { Hono } from 'hono'
import { RingletError } from '../../shared/errors.ts'
import { NODE_LOAD_HEADER } from '../../shared/fleet.ts'
import { addAdapterRoutes } from './adapter-routes.ts'
import { addEmbedRoutes } from './embed-routes.ts'
import { apiOf, errorResponse, toRingletError } from './error-reply.ts'
import { addGenerateRoutes } from './generate-routes.ts'
import type { NodeContext } from './node-context.ts'
import { addNodeRoutes } from './node-routes.ts'
import { addTextRoutes } from './text-routes.ts'
import { createTicketGuard } from './ticket-guard.ts'

/** nginx's status for a client that closed its request; nobody reads it. */
const CLIENT_GONE = 499

export function createApp(context: NodeContext): Hono {
  const app = new Hono()
  const guard = createTicketGuard(context)

  app.use(async (c, next) => {
    const arrivedAt = context.clock.steady()
    await next()
    // Late enough to count this request's own sequences, which a stream has begun with its headers.
    c.res.headers.set(NODE_LOAD_HEADER, String(context.engine.inFlight()))
    const seconds = (context.clock.steady() - arrivedAt) / 1000
    const known = c.error instanceof RingletError ? c.error.code : c.res.ok ? 'ok' : String(c.res.status)
    const code = c.res.status === CLIENT_GONE ? 'client_gone' : known
    // Registered routes only: a path from outside is no label.
    const route = c.req.routePath === '/*' ? 'unknown' : c.req.path
    if (!isStream(c.res)) {
      context.metrics.requestEnded(route, code, seconds)
    }
    const requestId = c.req.header('x-request-id')?.slice(0, 128)
    context.log.debug({ requestId, route, status: c.res.status, code, ms: Math.round(seconds * 1000) }, 'request')
  })

  addNodeRoutes(app, context, guard)
  addGenerateRoutes(app, context, guard)
  addEmbedRoutes(app, context, guard)
  addTextRoutes(app, context, guard)
  addAdapterRoutes(app, context, guard)

  app.notFound((c) => errorResponse(new RingletError('route_unknown', 'no such route'), apiOf(c.req.path)))

  app.onError((thrown, c) => {
    if (c.req.raw.signal.aborted) {
      return new Response(null, { status: CLIENT_GONE })
    }
    const error = toRingletError(thrown)
    if (error.code === 'internal') {
      context.log.error({ err: thrown, route: c.req.path }, 'a request failed')
    }
    return errorResponse(error, apiOf(c.req.path))
  })
  return app
}

/** Its headers are no end: the stream itself reports that. */
function isStream(response: Response): boolean {
  return response.headers.get('content-type')?.startsWith('text/event-stream') === true
}
