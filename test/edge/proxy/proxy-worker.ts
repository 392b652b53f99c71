/** A Worker with the real fleet registry and the real proxy, and no doors: what a test asks for is forwarded as it is. */

import { Hono } from 'hono'
import { drainNode, type FleetRegistryBinding, fleetReader } from '../../../edge/fleet/fleet-client.ts'
import type { FleetRegistry } from '../../../edge/fleet/fleet-registry.ts'
import { fleetRoutes } from '../../../edge/fleet/fleet-routes.ts'
import { createFleetView } from '../../../edge/fleet/fleet-view.ts'
import { forward } from '../../../edge/proxy/forward.ts'
import type { ForwardDeps, ForwardRequest, ForwardUsage } from '../../../edge/proxy/forward-types.ts'
import { createProxyState } from '../../../edge/proxy/proxy-state.ts'
import { explainPlacement } from '../../../edge/routing/explain.ts'
import type { AdapterSelection } from '../../../shared/adapter-ref.ts'
import { RingletError, toLoraxError } from '../../../shared/errors.ts'

export { FleetRegistry } from '../../../edge/fleet/fleet-registry.ts'

interface Bindings {
  FLEET: DurableObjectNamespace<FleetRegistry>
  SHARDS: string
  SECRET: string
  TIMINGS: string
}

export interface Asked {
  path?: string
  stream: boolean
  body: string
  selection: AdapterSelection
  placementKey: string
  errorStyle?: 'lorax' | 'openai'
  requestId?: string
  lastEventId?: string
  /** Aborts the request's `endSignal` after this time. */
  endAfterMs?: number
}

const now = () => Date.now()
const view = createFleetView({ now })
const ended: ForwardUsage[] = []
const logged: { event: string; [field: string]: string | number | boolean }[] = []
let state: ForwardDeps['state'] | undefined

const app = new Hono<{ Bindings: Bindings }>()
app.onError((error) => {
  const shown = error instanceof RingletError ? error : new RingletError('internal', String(error))
  return Response.json(toLoraxError(shown), { status: shown.kind.status })
})
app.route(
  '/',
  fleetRoutes<Bindings>({
    joinKeys: ({ SECRET }) => ({ keys: [{ id: 'j1', secret: SECRET }] }),
    ticketKeys: ({ SECRET }) => ({ keys: [{ id: 't1', secret: SECRET }] }),
    registry: registryOf,
    now,
  }),
)
app.post('/forward', async (c) => {
  const asked = await c.req.json<Asked>()
  const end = new AbortController()
  if (asked.endAfterMs !== undefined) {
    setTimeout(() => end.abort(new RingletError('token_revoked', 'the token was revoked')), asked.endAfterMs)
  }
  const request: ForwardRequest = {
    path: asked.path ?? '/generate_stream',
    bodyText: asked.body,
    accept: undefined,
    lastEventId: asked.lastEventId,
    action: 'generate',
    stream: asked.stream,
    errorStyle: asked.errorStyle ?? 'lorax',
    tenantId: 'tenant',
    cacheSalt: 'salt',
    seed: 11,
    limits: {},
    requestId: asked.requestId ?? crypto.randomUUID(),
    createdAt: 1_700_000_000,
    traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    selection: asked.selection,
    placementKey: asked.placementKey,
    adapterTokens: { '*': 'hub-token' },
    clientSignal: c.req.raw.signal,
    endSignal: end.signal,
    onEnd: (usage) => {
      ended.push(usage)
    },
  }
  return forward(
    request,
    depsOf(c.env, (work) => c.executionCtx.waitUntil(work)),
  )
})
app.post('/drain/:nodeId', async (c) =>
  c.json(await drainNode(registryOf(c.env), c.req.param('nodeId'), c.req.query('draining') !== 'false')),
)
app.post('/explain', async (c) => {
  const { selection, placementKey } = await c.req.json<Asked>()
  const deps = depsOf(c.env, (work) => c.executionCtx.waitUntil(work))
  const { routingSecret } = deps
  const snapshot = await deps.fleet()
  return c.json(explainPlacement({ selection, placementKey, routingSecret, snapshot, router: deps.state.router }))
})
app.get('/nodes', async (c) => {
  const { nodes } = await depsOf(c.env, (work) => c.executionCtx.waitUntil(work)).fleet()
  return c.json(nodes.map((node) => ({ ...node, resident: node.resident.count })))
})
app.get('/ended', (c) => c.json(ended))
app.get('/logged', (c) => c.json(logged))

export default app

function registryOf({ FLEET, SHARDS }: Bindings): FleetRegistryBinding {
  return { namespace: FLEET, shards: Number(SHARDS) }
}

function depsOf(env: Bindings, waitUntil: (work: Promise<unknown>) => void): ForwardDeps {
  state ??= createProxyState({ now, timings: JSON.parse(env.TIMINGS) as Record<string, number> })
  return {
    fleet: () => view.snapshot(fleetReader(registryOf(env)), waitUntil),
    state,
    waitUntil,
    ticketKeys: { keys: [{ id: 't1', secret: env.SECRET }] },
    routingSecret: env.SECRET,
    fetch: (input, init) => fetch(input, init),
    now,
    random: Math.random,
    log: (event, fields) => logged.push({ event, ...fields }),
  }
}
