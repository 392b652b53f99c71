/**
 * The seam between the Worker's doors (who is asking, for which adapter) and the proxy (which node, and what comes back).
 * Types only: `forward.ts` implements `Forward`, the routes call it.
 */

import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import type { Ticket, TicketAction, TicketKeys } from '../../shared/ticket.ts'
import type { FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import type { ProxyState } from './proxy-state.ts'

/** One authorised request, ready to be sent to a node. */
export interface ForwardRequest {
  /** The path with its query, as the node serves it: `/generate`, `/v1/chat/completions`, … */
  path: string
  /** The body as it came in (JSON text); the node parses it again, the ticket overrules it. */
  bodyText: string
  accept: string | undefined
  /** Headers of the client that mean something to the node: `x-progress`. */
  clientHeaders?: Readonly<Record<string, string>>
  /** The client comes back to a stream that broke off after this event. */
  lastEventId?: string | undefined
  action: TicketAction
  /** The body or the route asks for server-sent events. */
  stream: boolean
  /** Which error body the route's clients know; also the shape of an error event in a stream. */
  errorStyle: ErrorStyle
  tenantId: string
  /** Hex; the tenant's own, derived with a secret. */
  cacheSalt: string
  /** For sampling where the caller gave none; below 2^53. */
  seed: number
  limits: Ticket['limits']
  requestId: string
  /** Unix seconds; stays the same when a stream continues on another node. */
  createdAt: number
  traceparent: string
  /** Resolved, with exact revisions where the adapter's home has them. */
  selection: AdapterSelection
  /**
   * What placement hashes: `selectionKey` of the selection as asked for (aliases resolved, revisions only where the caller
   * or the alias pinned one). Known before the adapter's home has answered, so that a prefetch can go to the same node, and
   * the same for all revisions of an adapter. Residency is matched with `selectionKey(selection)`.
   */
  placementKey: string
  /** The caller's tokens for the adapters' homes, by ref spelling or `*`; empty when the caller gave none. */
  adapterTokens: Readonly<Record<string, string>>
  /** Aborted when the client left: nothing is answered any more, the node's request is cancelled. */
  clientSignal: AbortSignal
  /**
   * Aborted with a `RingletError` as its reason when the request may not go on (its token was revoked): a stream ends with
   * that error as an event, a reply not yet begun is that error.
   */
  endSignal: AbortSignal
  /**
   * Called exactly once, when the request has ended in whatever way, also when nothing was generated (zeros). The request's
   * context is kept until its promise resolves.
   */
  onEnd: (usage: ForwardUsage) => Promise<void> | void
}

export type ErrorStyle = 'lorax' | 'openai'

export interface ForwardUsage {
  /** The node's header `x-prompt-tokens`, or what its stream said once it had started; 0 when no node began. */
  promptTokens: number
  /** JSON replies: `x-generated-tokens`. Streams: token ids counted in `id:` lines, on all nodes together, none twice. */
  generatedTokens: number
  /** `x-adapter-cache` of the node that answered, for the log. */
  adapterCache?: string
  nodeId?: string
  /** How the request ended: a code when it failed or was cut, `ok` when the answer was delivered whole. */
  outcome: string
}

/** What the proxy needs from its surroundings. `now` is in unix milliseconds, `random` in [0, 1). */
export interface ForwardDeps {
  fleet: () => Promise<FleetSnapshot>
  /** The isolate's memory between requests; made once, at the isolate's start. */
  state: ProxyState
  /** Keeps the request's context alive for a prefetch hint that nobody waits for. */
  waitUntil: (work: Promise<unknown>) => void
  ticketKeys: TicketKeys
  /** Keys the rendezvous hash, so that tenants can't choose ids that land on one node. */
  routingSecret: string
  /** The client's region: in production its continent, as Cloudflare knows it. */
  region?: string | undefined
  fetch: typeof fetch
  now: () => number
  random: () => number
  /** One structured line; the caller of `log` never passes a secret, token or prompt. */
  log: (event: string, fields: Readonly<Record<string, string | number | boolean>>) => void
}

/**
 * Sends the request to the best node, tries others where that is allowed, and continues broken streams. Throws a
 * `RingletError` for a refusal before the first byte (the app's error handler shapes it); node errors that are not worth a
 * retry pass through with the node's status and body. The response carries the node's headers without hop-by-hop ones, plus
 * `x-ringlet-node`; the app adds request id, security headers and its own `Server-Timing` entries.
 */
export type Forward = (request: ForwardRequest, deps: ForwardDeps) => Promise<Response>

/*
 * What a Worker puts together around this:
 *  once an isolate     `fleetView = createFleetView({ now })` (edge/fleet/fleet-view.ts)
 *                      `state = createProxyState({ now })` (edge/proxy/proxy-state.ts)
 *  from its bindings   `registry: FleetRegistryBinding = { namespace: env.FLEET, shards, locationHint? }` (edge/fleet/fleet-client.ts)
 *  per request         `fleet: () => fleetView.snapshot(fleetReader(registry), waitUntil)`
 *  nodes' door         `fleetRoutes({ joinKeys, ticketKeys, registry, now })` (edge/fleet/fleet-routes.ts), POST /fleet/heartbeat
 *  operators           `drainNode(registry, nodeId, draining)`; `explainPlacement` (edge/routing/explain.ts)
 *  before the check    `prefetchEarly(...)` (edge/proxy/prefetch.ts): tells the likely node while the adapter's home answers
 *  exported class      `FleetRegistry` (edge/fleet/fleet-registry.ts), a Durable Object with SQLite storage
 */
