/** LoRAX's `/metrics`: all nodes' numbers at one address. For operators alone, since they tell of every tenant's traffic. */

import { Hono } from 'hono'
import { RingletError } from '../../shared/errors.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import { forwardDeps } from '../routes/serve.ts'
import { EXPOSITION_TYPE, mergeExpositions, type NodeExposition } from './fleet-metrics.ts'
import { metricsJson } from './metrics-json.ts'
import { callNode } from './node-call.ts'

export const METRICS_PATH = '/metrics'
const SCRAPE_TIMEOUT_MS = 5_000
/** Whose calls these count as on a node. */
const OPERATOR = 'operator'

export function metricsRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get(METRICS_PATH, async (c) => {
    const { nodes } = await forwardDeps(c).fleet()
    const parts = await Promise.all(nodes.map((node) => scrape(c, node)))
    // LoRAX's rule: text, unless JSON is named. Prometheus itself never asks for it.
    return c.req.header('accept')?.includes('application/json')
      ? c.json(metricsJson(parts))
      : c.body(mergeExpositions(parts), 200, { 'content-type': EXPOSITION_TYPE })
  })
  return app
}

async function scrape(c: AppContext, node: FleetNode): Promise<NodeExposition> {
  const { nodeId } = node
  const control = { method: 'GET', path: '/metrics', action: 'info', timeoutMs: SCRAPE_TIMEOUT_MS } as const
  try {
    const reply = await callNode(c, node, { ...control, tenantId: OPERATOR })
    const text = await reply.text()
    return { nodeId, text: reply.ok ? text : undefined }
  } catch (error) {
    if (error instanceof RingletError || (error instanceof Error && error.name === 'TimeoutError')) {
      return { nodeId, text: undefined }
    }
    throw error
  }
}
