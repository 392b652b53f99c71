/** LoRAX's routes about the server itself, answered by a node: `/info`, and `/startup`, which generates one token. */

import { Hono } from 'hono'
import { RingletError } from '../../shared/errors.ts'
import { callNode } from '../admin/node-call.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import { promptSize } from './request-size.ts'
import { forwardDeps, serve } from './serve.ts'

/** LoRAX's own warm-up prompt. */
const STARTUP_BODY = JSON.stringify({ inputs: 'Who?', parameters: { max_new_tokens: 1 } })
const INFO_TIMEOUT_MS = 5_000

export function nodeRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/info', info)
  app.get('/startup', async (c) => {
    const size = () => ({ ...promptSize(STARTUP_BODY, STARTUP_BODY.length), likelyNewTokens: 1, mostNewTokens: 1 })
    const reply = await serve(c, {
      action: 'generate',
      path: '/generate',
      bodyText: STARTUP_BODY,
      stream: false,
      adapter: {},
      size,
    })
    if (reply.ok) {
      // Read to its end, so that it counts as answered.
      await reply.arrayBuffer()
      return c.body(null, 200)
    }
    return reply
  })
  return app
}

/** All nodes of the ring serve the same base; the first that answers speaks for them. */
async function info(c: AppContext): Promise<Response> {
  const { ring } = await forwardDeps(c).fleet()
  const control = {
    method: 'GET',
    path: '/info',
    action: 'info',
    tenantId: c.get('tenant').tenantId,
    timeoutMs: INFO_TIMEOUT_MS,
  } as const
  for (const node of ring.nodes) {
    try {
      const reply = await callNode(c, node, control)
      if (reply.ok) {
        return c.json(await reply.json<object>())
      }
      await reply.body?.cancel()
    } catch (error) {
      if (!(error instanceof RingletError)) {
        throw error
      }
    }
  }
  throw new RingletError('no_node', 'no node is up to ask', { retryAfterSeconds: 2 })
}
