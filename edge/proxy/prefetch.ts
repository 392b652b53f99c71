/** Tells a node that an adapter is about to be asked for. A hint: nobody waits for it, and its failure changes nothing. */

import { selectionKey } from '../../shared/adapter-ref.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import type { Route } from '../routing/router.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { createNodeRequest } from './node-request.ts'

/** The same hint to the same node is not repeated for this long. */
const HINT_REST_MS = 10_000
const MAX_HINTS = 2_048
const HINT_TIMEOUT_MS = 5_000

export type PrefetchRequest = Pick<
  ForwardRequest,
  'tenantId' | 'cacheSalt' | 'requestId' | 'createdAt' | 'traceparent' | 'selection' | 'placementKey' | 'adapterTokens'
>

/** While the adapter's home is asked about the caller: a cold load on the node overlaps with that question. */
export async function prefetchEarly(request: PrefetchRequest, deps: ForwardDeps): Promise<void> {
  if (request.selection.kind === 'base') {
    return
  }
  const { selection, placementKey } = request
  const { routingSecret, region } = deps
  const snapshot = await deps.fleet()
  const placement = deps.state.router.preview({ selection, placementKey, routingSecret, region }, snapshot)
  if (placement !== undefined) {
    hint(request, snapshot.ring.nodes[placement.index]!, deps)
  }
}

/** The node that owns the adapter, or will after a drain, loads it while another one serves the request. */
export function hintOwner(request: PrefetchRequest, route: Route, deps: ForwardDeps): void {
  if (route.prefetch !== undefined) {
    hint(request, route.prefetch, deps)
  }
}

function hint(request: PrefetchRequest, node: FleetNode, deps: ForwardDeps): void {
  const { hints } = deps.state
  const key = `${node.nodeId}\0${selectionKey(request.selection)}`
  const now = deps.now()
  if (now - (hints.get(key) ?? Number.NEGATIVE_INFINITY) < HINT_REST_MS) {
    return
  }
  if (hints.size >= MAX_HINTS) {
    hints.clear()
  }
  hints.set(key, now)
  deps.waitUntil(sendHint(request, node, deps))
}

async function sendHint(request: PrefetchRequest, node: FleetNode, deps: ForwardDeps): Promise<void> {
  const call = {
    ...request,
    action: 'prefetch',
    path: '/adapters/prefetch',
    bodyText: '{}',
    accept: undefined,
    seed: 0,
    limits: {},
  } as const
  try {
    const { url, init } = await createNodeRequest(call, node, deps)
    const response = await deps.fetch(url, { ...init, signal: AbortSignal.timeout(HINT_TIMEOUT_MS) })
    await response.body?.cancel()
    deps.log('prefetch_hint', { requestId: request.requestId, nodeId: node.nodeId, status: response.status })
  } catch (cause) {
    const reason = cause instanceof Error ? cause.name : 'unknown'
    deps.log('prefetch_hint_failed', { requestId: request.requestId, nodeId: node.nodeId, reason })
  }
}
