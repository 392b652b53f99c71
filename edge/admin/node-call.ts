/** One call to one node's control routes, with a ticket of its own; no retry, no placement. */

import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import { RingletError } from '../../shared/errors.ts'
import type { TicketAction } from '../../shared/ticket.ts'
import type { AppContext } from '../app-types.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import { createNodeRequest } from '../proxy/node-request.ts'

export interface NodeControl {
  method: 'GET' | 'POST'
  path: string
  action: TicketAction
  body?: object
  selection?: AdapterSelection
  adapterTokens?: Record<string, string>
  /** Who the call counts for on the node. */
  tenantId: string
  timeoutMs: number
}

export async function callNode(c: AppContext, node: FleetNode, control: NodeControl): Promise<Response> {
  const services = c.env
  const { url, init } = await createNodeRequest(
    {
      action: control.action,
      path: control.path,
      bodyText: JSON.stringify(control.body ?? {}),
      accept: 'application/json',
      tenantId: control.tenantId,
      requestId: c.get('requestId'),
      traceparent: c.get('traceparent'),
      selection: control.selection ?? { kind: 'base' },
      adapterTokens: control.adapterTokens ?? {},
      cacheSalt: await services.cacheSalt(control.tenantId),
      seed: 0,
      limits: {},
      createdAt: Math.floor(services.now() / 1000),
    },
    node,
    { ticketKeys: { keys: services.config.RINGLET_TICKET_KEYS }, now: services.now, random: services.random },
  )
  const { body, ...rest } = init
  const request = control.method === 'GET' ? { ...rest, method: 'GET' } : { ...rest, body }
  try {
    return await services.fetch(url, { ...request, signal: AbortSignal.timeout(control.timeoutMs) })
  } catch (cause) {
    throw new RingletError('node_unreachable', `node ${node.nodeId} does not answer`, { cause, retryAfterSeconds: 2 })
  }
}
