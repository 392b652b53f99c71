/** The fleet as an operator sees it: its nodes, draining one, why placement chose one, and the adapters they hold. */

import { Hono } from 'hono'
import {
  type AdapterRef,
  type AdapterSelection,
  formatAdapterRef,
  parseAdapterName,
  selectionKey,
  selectionRefs,
} from '../../shared/adapter-ref.ts'
import {
  ADAPTER_ACTIONS,
  type AdapterAction,
  adapterActionSchema,
  drainNodeSchema,
  type NodeAnswer,
} from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { checkPlainId } from '../adapters/adapter-scope.ts'
import { authorizeSelection } from '../adapters/home-check.ts'
import { adapterNotFound } from '../adapters/resolve-selection.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import { readBody } from '../doors/json-body.ts'
import { drainNode, fleetReader } from '../fleet/fleet-client.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import { forwardDeps } from '../routes/serve.ts'
import { explainPlacement } from '../routing/explain.ts'
import { callNode, type NodeControl } from './node-call.ts'

const LIST_TIMEOUT_MS = 10_000
/** Older than this, the list of nodes is read anew. */
const NOW_MS = 0
/** A pin or prefetch downloads before it answers. */
const ACTION_TIMEOUT_MS = 300_000
/** Whose share of a node's caches the operator's own calls count for. */
const OPERATOR = 'operator'

export function fleetAdminRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/nodes', async (c) => {
    // An operator who just drained or stopped a node looks for that, not for what requests saw seconds ago.
    const { fleetView, registry } = c.env
    const { nodes, takenAt } = await fleetView.snapshot(fleetReader(registry), forwardDeps(c).waitUntil, NOW_MS)
    // The index of residents is for placement; the list of adapters is GET /admin/adapters.
    return c.json({ items: nodes.map(({ resident: _, ...node }) => node), takenAt })
  })

  app.post('/nodes/:node/drain', async (c) => {
    const { draining } = await readBody(c, drainNodeSchema)
    const node = c.req.param('node')
    if (!(await drainNode(c.env.registry, node, draining))) {
      throw new RingletError('route_unknown', 'there is no such node')
    }
    return c.json({ node, draining })
  })

  app.get('/explain', async (c) => {
    const name = c.req.query('adapter')
    if (name === undefined) {
      throw new RingletError('field_invalid', 'missing query `adapter`', { param: 'adapter' })
    }
    const asked = { kind: 'single', ref: await toRef(c, name) } as const
    const { state, routingSecret, fleet, ...deps } = forwardDeps(c)
    const region = c.req.query('region') ?? deps.region
    const selection = await pinned(c, asked)
    const placementKey = selectionKey(asked)
    return c.json(
      explainPlacement({
        selection,
        placementKey,
        routingSecret,
        region,
        snapshot: await fleet(),
        router: state.router,
      }),
    )
  })

  app.get('/adapters', async (c) => {
    const { nodes } = await forwardDeps(c).fleet()
    const control = { method: 'GET', path: '/adapters', action: 'admin', timeoutMs: LIST_TIMEOUT_MS } as const
    return c.json({ nodes: await askAll(c, nodes, { ...control, tenantId: OPERATOR }) })
  })
  for (const action of ADAPTER_ACTIONS) {
    app.post(`/adapters/${action}`, async (c) => {
      const wanted = await readBody(c, adapterActionSchema)
      return c.json({ nodes: await actOnAdapter(c, action, wanted) })
    })
  }
  return app
}

async function actOnAdapter(
  c: AppContext,
  action: (typeof ADAPTER_ACTIONS)[number],
  wanted: AdapterAction,
): Promise<NodeAnswer[]> {
  const ref = await toRef(c, wanted.adapter)
  const chosen = await chooseNodes(c, action, ref, wanted.node)
  return askAll(c, chosen, {
    method: 'POST',
    path: `/adapters/${action}`,
    action: action === 'prefetch' ? 'prefetch' : 'admin',
    body: { adapter: formatAdapterRef(ref) },
    selection: { kind: 'single', ref },
    adapterTokens: wanted.token === undefined ? {} : { [formatAdapterRef(ref)]: wanted.token },
    tenantId: OPERATOR,
    timeoutMs: ACTION_TIMEOUT_MS,
  })
}

/** The node that is named; for a prefetch the one that a request would get; else all. */
async function chooseNodes(
  c: AppContext,
  action: (typeof ADAPTER_ACTIONS)[number],
  ref: AdapterRef,
  named: string | undefined,
): Promise<readonly FleetNode[]> {
  const { state, routingSecret, region, fleet } = forwardDeps(c)
  const snapshot = await fleet()
  if (snapshot.nodes.length === 0) {
    throw new RingletError('no_node', 'no node is in the fleet', { retryAfterSeconds: 2 })
  }
  if (named === undefined && action !== 'prefetch') {
    return snapshot.nodes
  }
  const selection = { kind: 'single', ref } as const
  const placementKey = selectionKey(selection)
  const query = { selection, placementKey, routingSecret, region, snapshot, router: state.router }
  const wanted = named ?? explainPlacement(query).chosen?.nodeId
  const found = snapshot.nodes.filter((node) => node.nodeId === wanted)
  if (found.length === 0) {
    throw new RingletError('route_unknown', 'there is no such node')
  }
  return found
}

/** With the revision that a request would get now, where the home tells it to this caller; as it was asked otherwise. */
async function pinned(c: AppContext, selection: AdapterSelection): Promise<AdapterSelection> {
  const token = c.req.header('x-adapter-token')
  const tokens = Object.fromEntries(
    token === undefined ? [] : selectionRefs(selection).map((ref) => [formatAdapterRef(ref), token]),
  )
  try {
    const verdict = await authorizeSelection(selection, tokens, c.env.homes)
    return verdict.kind === 'allowed' ? verdict.selection : selection
  } catch (error) {
    if (error instanceof RingletError && error.code === 'adapter_home_unreachable') {
      return selection
    }
    throw error
  }
}

/** Each node's own answer, failures included: one that is down hides nothing of the others. */
function askAll(c: AppContext, nodes: readonly FleetNode[], control: NodeControl): Promise<NodeAnswer[]> {
  return Promise.all(
    nodes.map(async (node): Promise<NodeAnswer> => {
      try {
        const reply = await callNode(c, node, control)
        const text = await reply.text()
        return { node: node.nodeId, status: reply.status, body: text === '' ? null : JSON.parse(text) }
      } catch (error) {
        const known =
          error instanceof RingletError ? error : new RingletError('node_unreachable', 'the answer is no JSON')
        return { node: node.nodeId, status: known.kind.status, body: { error: known.message, code: known.code } }
      }
    }),
  )
}

async function toRef(c: AppContext, name: string): Promise<AdapterRef> {
  const at = 'adapter'
  const parsed = parseAdapterName(name, undefined, c.env.config.RINGLET_DEFAULT_SOURCE, { name: at, source: at })
  if (parsed.kind === 'ref') {
    checkPlainId(parsed.ref, at)
    return parsed.ref
  }
  const ref = await c.env.aliases.resolve(parsed.alias, forwardDeps(c).waitUntil)
  if (ref === undefined) {
    throw adapterNotFound(name, 'lorax', at)
  }
  return ref
}
