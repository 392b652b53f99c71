/**
 * The ticket: what the edge signs and the node trusts, and nothing else. HMAC-SHA256 (RFC 2104) over base64url JSON.
 * It never carries an adapter token or a tenant token; those that a node needs travel in their own header.
 */

import type { AdapterSelection } from './adapter-ref.ts'
import { fromBase64Url, textToBase64Url } from './base64url.ts'
import { RingletError } from './errors.ts'
import { type SigningKeys, signText, verifyText } from './hmac.ts'

/** Headers between edge and node. The edge strips every `x-ringlet-*` that comes from outside. */
export const TICKET_HEADER = 'x-ringlet-ticket'
/** The caller's token for the adapter's home; base64url JSON `{ [refSpelling | '*']: token }`. */
export const ADAPTER_TOKENS_HEADER = 'x-ringlet-adapter-tokens'
/** Tokens a client already holds when a stream continues on another node; base64url JSON `Delivered`. */
export const DELIVERED_HEADER = 'x-ringlet-delivered'

/** The longest life of a ticket, from the design: ≤ 60 s. */
export const MAX_TICKET_LIFE_MS = 60_000

/** Token ids delivered so far, by choice index (`n` choices or prompts make several). */
export type Delivered = Record<string, number[]>

/** What a ticket allows its bearer to do on the node. */
export type TicketAction = 'generate' | 'embed' | 'tokenize' | 'info' | 'prefetch' | 'admin'

export interface Ticket {
  action: TicketAction
  /** Unique; a node accepts each once. */
  ticketId: string
  requestId: string
  tenantId: string
  nodeId: string
  /** Of the base that placement chose the node for; a node that was restarted with another one refuses. */
  baseDigest?: string
  adapter: AdapterSelection
  /** Per-tenant secret salt for prefix reuse; hex. */
  cacheSalt: string
  /** Used where the caller gave no seed, so that a stream continued elsewhere samples the same; below 2^53. */
  seed: number
  limits: {
    /** Most tokens that this request may generate; the node lowers `max_tokens` to it. */
    maxNewTokens?: number
  }
  /** Unix seconds; `created` in OpenAI replies, the same when a stream continues on another node. */
  createdAt: number
  /** Unix milliseconds. */
  expiresAt: number
}

export type TicketKeys = SigningKeys

export async function mintTicket(ticket: Ticket, keys: TicketKeys): Promise<string> {
  const key = keys.keys[0]
  if (key === undefined) {
    throw new RingletError('internal', 'no ticket key is configured')
  }
  const payload = textToBase64Url(JSON.stringify(ticket))
  const head = `${key.id}.${payload}`
  return `${head}.${await signText(head, key.secret)}`
}

/** Checks signature, node and expiry. Replay is the node's to check: it alone remembers ticket ids. */
export async function verifyTicket(text: string, keys: TicketKeys, nodeId: string, now: number): Promise<Ticket> {
  const [keyId, payload, signature, ...rest] = text.split('.')
  if (keyId === undefined || payload === undefined || signature === undefined || rest.length > 0) {
    throw new RingletError('ticket_invalid', 'the ticket is malformed')
  }
  const key = keys.keys.find((candidate) => candidate.id === keyId)
  if (key === undefined || !(await verifyText(`${keyId}.${payload}`, signature, key.secret))) {
    throw new RingletError('ticket_invalid', 'the ticket is not signed with a known key')
  }
  const bytes = fromBase64Url(payload)
  if (bytes === undefined) {
    throw new RingletError('ticket_invalid', 'the ticket is malformed')
  }
  // Signed by us, so the type holds.
  const ticket = JSON.parse(new TextDecoder().decode(bytes)) as Ticket
  if (ticket.nodeId !== nodeId) {
    throw new RingletError('ticket_wrong_node', 'the ticket is for another node')
  }
  if (ticket.expiresAt < now || ticket.expiresAt > now + 2 * MAX_TICKET_LIFE_MS) {
    throw new RingletError('ticket_expired', 'the ticket has expired')
  }
  return ticket
}
