/** Is the endpoint up? The only routes that answer anybody; LoRAX's answers: 200 and nothing, or 503. */

import { Hono } from 'hono'
import type { AppContext, AppEnv } from '../app-types.ts'
import { forwardDeps } from './serve.ts'

export const HEALTH_PATHS = ['/', '/health', '/ping'] as const

export function healthRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  for (const path of HEALTH_PATHS) {
    app.get(path, health)
  }
  return app
}

/** Healthy when a request could be served: a node is heard and takes new ones. */
async function health(c: AppContext): Promise<Response> {
  const { ring, silent } = await forwardDeps(c).fleet()
  if (!silent && ring.nodes.some((node) => !node.draining)) {
    return c.body(null, 200)
  }
  c.header('retry-after', '2')
  return c.json({ error: 'unhealthy', error_type: 'healthcheck' }, 503)
}
