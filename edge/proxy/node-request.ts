/** One HTTP request to a node: ticket, headers, body. */

import { textToBase64Url } from '../../shared/base64url.ts'
import {
  ADAPTER_TOKENS_HEADER,
  DELIVERED_HEADER,
  type Delivered,
  MAX_TICKET_LIFE_MS,
  mintTicket,
  TICKET_HEADER,
  type TicketKeys,
} from '../../shared/ticket.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import type { ForwardRequest } from './forward-types.ts'

/**
 * Most bytes of the delivered tokens' header, about 10,000 tokens: Cloudflare passes at most 128 KiB of headers to an
 * origin behind it. A longer stream can't be continued.
 */
export const MAX_DELIVERED_BYTES = 96 * 1024

/** What a ticket says, apart from the node and the times. */
export type TicketClaims = Pick<
  ForwardRequest,
  'action' | 'requestId' | 'tenantId' | 'selection' | 'cacheSalt' | 'seed' | 'limits' | 'createdAt'
>

export type NodeCall = TicketClaims &
  Pick<ForwardRequest, 'path' | 'bodyText' | 'accept' | 'clientHeaders' | 'adapterTokens' | 'traceparent'>

export interface NodeRequestDeps {
  ticketKeys: TicketKeys
  now: () => number
  random: () => number
}

export async function createNodeRequest(
  call: NodeCall,
  node: FleetNode,
  deps: NodeRequestDeps,
  delivered?: string,
): Promise<{ url: string; init: RequestInit }> {
  const headers: Record<string, string> = {
    ...call.clientHeaders,
    'content-type': 'application/json',
    // The relay reads the body as text: no compression on the way.
    'accept-encoding': 'identity',
    'x-request-id': call.requestId,
    traceparent: call.traceparent,
    [TICKET_HEADER]: await mintNodeTicket(call, node, deps),
  }
  if (call.accept !== undefined) {
    headers.accept = call.accept
  }
  if (Object.keys(call.adapterTokens).length > 0) {
    headers[ADAPTER_TOKENS_HEADER] = encodeJson(call.adapterTokens)
  }
  if (delivered !== undefined) {
    headers[DELIVERED_HEADER] = delivered
  }
  const url = node.url.replace(/\/+$/, '') + call.path
  // A redirect would carry the ticket to an address that no node signed for.
  return { url, init: { method: 'POST', headers, body: call.bodyText, redirect: 'manual' } }
}

/** `undefined` when it is longer than a header may be. */
export function encodeDelivered(delivered: Delivered): string | undefined {
  const text = encodeJson(delivered)
  return text.length > MAX_DELIVERED_BYTES ? undefined : text
}

function mintNodeTicket(
  claims: TicketClaims,
  { nodeId, baseDigest }: FleetNode,
  deps: NodeRequestDeps,
): Promise<string> {
  const { action, requestId, tenantId, selection: adapter, cacheSalt, seed, limits, createdAt } = claims
  // A client may choose the request id, so it is not unique by itself; nodes refuse an id they have seen.
  const ticketId = `${requestId}.${randomHex(deps.random)}${randomHex(deps.random)}`
  const expiresAt = deps.now() + MAX_TICKET_LIFE_MS
  return mintTicket(
    {
      action,
      ticketId,
      requestId,
      tenantId,
      nodeId,
      baseDigest,
      adapter,
      cacheSalt,
      seed,
      limits,
      createdAt,
      expiresAt,
    },
    deps.ticketKeys,
  )
}

function randomHex(random: () => number): string {
  return Math.floor(random() * 2 ** 48).toString(16)
}

function encodeJson(value: unknown): string {
  return textToBase64Url(JSON.stringify(value))
}
