/** The Worker's app: every request's way through the doors, in order. Knows no bindings; its services are given. */

import { Hono } from 'hono'
import { createMiddleware } from 'hono/factory'
import { RingletError } from '../shared/errors.ts'
import { aliasRoutes } from './admin/alias-routes.ts'
import { fleetAdminRoutes } from './admin/fleet-admin-routes.ts'
import { METRICS_PATH, metricsRoutes } from './admin/metrics-routes.ts'
import { tenantRoutes } from './admin/tenant-routes.ts'
import { usageRoutes } from './admin/usage-routes.ts'
import type { AppContext, AppEnv, EdgeServices } from './app-types.ts'
import { authenticateTenant, isAdminToken, requireToken } from './auth/authenticate.ts'
import { bearerToken } from './auth/token.ts'
import { replyWithError } from './doors/error-replies.ts'
import { frontDoor } from './doors/front-door.ts'
import { bodyCap } from './doors/json-body.ts'
import { noRoute } from './doors/no-route.ts'
import { timed } from './doors/server-timing.ts'
import { fleetRoutes } from './fleet/fleet-routes.ts'
import { docRoutes, tryPageRoutes } from './routes/doc-routes.ts'
import { generateRoutes } from './routes/generate-routes.ts'
import { healthRoutes } from './routes/health-routes.ts'
import { modelRoutes } from './routes/model-routes.ts'
import { nodeRoutes } from './routes/node-routes.ts'
import type { TokenRecord } from './tenants/tenant-store.ts'

/**
 * What stands before the tenants' door answers without a tenant: health and the page `/docs` (anyone), heartbeats (signed by nodes), `/admin`
 * (its own door). Everything registered after it, and every path that nobody registered, needs a tenant's token.
 */
export function createApp(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.onError(replyWithError)
  const nothingHere = noRoute(app)
  app.notFound(nothingHere)
  app.use(frontDoor)

  app.route('/', healthRoutes())
  app.route('/', tryPageRoutes())
  app.route(
    '/',
    fleetRoutes<EdgeServices>({
      joinKeys: (services) => ({ keys: services.config.RINGLET_JOIN_KEYS }),
      ticketKeys: (services) => ({ keys: services.config.RINGLET_TICKET_KEYS }),
      registry: (services) => services.registry,
      now: Date.now,
    }),
  )

  app.use(bodyCap)
  app.use('/admin/*', adminDoor)
  for (const routes of [tenantRoutes(), aliasRoutes(), usageRoutes(), fleetAdminRoutes()]) {
    app.route('/admin', routes)
  }
  app.all('/admin/*', nothingHere)
  app.use(METRICS_PATH, adminDoor)
  app.route('/', metricsRoutes())
  app.all(METRICS_PATH, nothingHere)

  app.use(tenantDoor)
  for (const routes of [generateRoutes(), modelRoutes(), nodeRoutes(), docRoutes()]) {
    app.route('/', routes)
  }
  return app
}

const tenantDoor = createMiddleware<AppEnv>(async function tenantDoor(c, next) {
  const tenant = await timed(c, 'auth', authenticate(c))
  c.set('tenant', tenant)
  noteCaller(c, tenant)
  await next()
})

/** The operator's token, or a tenant's with the admin scope. */
const adminDoor = createMiddleware<AppEnv>(async function adminDoor(c, next) {
  const token = requireToken(bearerToken(c.req.header('authorization')))
  if (!(await isAdminToken(token, c.env.config.RINGLET_ADMIN_TOKEN))) {
    const tenant = await authenticate(c)
    noteCaller(c, tenant)
    if (!tenant.scopes.admin) {
      throw new RingletError('scope_denied', 'this token may not administer')
    }
  }
  await next()
})

function noteCaller(c: AppContext, { tenantId, keyId }: TokenRecord): void {
  const line = c.get('requestLog')
  line.tenant = tenantId
  line.keyId = keyId
}

function authenticate(c: AppContext) {
  const token = requireToken(bearerToken(c.req.header('authorization')))
  const find = (keyId: string) => c.env.directory.find(keyId, (work) => c.executionCtx.waitUntil(work))
  return authenticateTenant(token, find, c.env.now())
}
