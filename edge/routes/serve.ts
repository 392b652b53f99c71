/**
 * One authenticated request from its parsed body to the node's answer: the tenant's limits, the adapter's name, its home's
 * word, and then the proxy.
 */

import { type AdapterSelection, selectionRefs } from '../../shared/adapter-ref.ts'
import { tokenSchema } from '../../shared/api/adapter-fields.ts'
import type { AdapterFields } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { TicketAction } from '../../shared/ticket.ts'
import { authorizeSelection } from '../adapters/home-check.ts'
import {
  adapterNotFound,
  checksCallers,
  type ResolvedSelection,
  resolveSelection,
} from '../adapters/resolve-selection.ts'
import type { AppContext, RequestVariables } from '../app-types.ts'
import { watchRequest } from '../auth/request-watch.ts'
import { timed } from '../doors/server-timing.ts'
import { fleetReader } from '../fleet/fleet-client.ts'
import type { FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import { forward } from '../proxy/forward.ts'
import type { ForwardDeps, ForwardUsage } from '../proxy/forward-types.ts'
import { type PrefetchRequest, prefetchEarly } from '../proxy/prefetch.ts'
import { type Admission, admitRequest } from '../tenants/admission.ts'
import type { AdmissionAsk } from '../tenants/limit-policy.ts'
import type { UsageReport } from '../tenants/usage-table.ts'

/** An event's id names the tokens of one event. */
const MAX_EVENT_ID = 8192

export interface ServeRequest {
  action: TicketAction
  /** With the query. */
  path: string
  bodyText: string
  stream: boolean
  adapter: AdapterFields
  size: (maxPositions: number) => AdmissionAsk
}

export function serve(c: AppContext, request: ServeRequest): Promise<Response> {
  const answer = admitAndSend(c, request)
  // Cloudflare stops the code of a client that left; what the request holds of its tenant's limits would stay held.
  const settled = answer.then(noop, noop)
  c.executionCtx.waitUntil(settled)
  return answer
}

function noop(): void {}

async function admitAndSend(c: AppContext, request: ServeRequest): Promise<Response> {
  const services = c.env
  const startedAt = services.now()
  const tenant = c.get('tenant')
  const deps = forwardDeps(c)
  const snapshot = await timed(c, 'fleet', deps.fleet())
  const size = request.size(snapshot.longestPositions)
  const resolving = resolve(c, request.adapter, snapshot)
  // Its refusal is taken below; until then it must not count as unhandled.
  resolving.catch(() => undefined)
  const admission = await timed(c, 'limits', admitRequest(tenant, size, services, deps.waitUntil))
  try {
    const resolved = await resolving
    c.get('requestLog').adapter = resolved.usageName
    const selection = await timed(c, 'adapter', authorize(c, resolved, deps))
    return await send(c, { startedAt, request, resolved, selection, admission, sequences: size.sequences }, deps)
  } catch (error) {
    c.executionCtx.waitUntil(admission.settle(undefined))
    throw error
  }
}

export function forwardDeps(c: AppContext): ForwardDeps {
  const { env: services, executionCtx } = c
  const waitUntil = (work: Promise<unknown>) => executionCtx.waitUntil(work)
  return {
    fleet: () => services.fleetView.snapshot(fleetReader(services.registry), waitUntil),
    state: services.proxyState,
    waitUntil,
    ticketKeys: { keys: services.config.RINGLET_TICKET_KEYS },
    routingSecret: services.config.RINGLET_ROUTING_SEED,
    region: continentOf(c.req.raw),
    fetch: services.fetch,
    now: services.now,
    random: services.random,
    log: services.log,
  }
}

/** Absent where Cloudflare is not in front. */
function continentOf(request: Request): string | undefined {
  const continent = request.cf?.continent
  return typeof continent === 'string' ? continent : undefined
}

export function resolve(c: AppContext, fields: AdapterFields, snapshot: FleetSnapshot): Promise<ResolvedSelection> {
  const { config, aliases } = c.env
  const headerToken = adapterTokenOf(c)
  return resolveSelection(fields, {
    api: c.get('errorStyle'),
    baseModels: snapshot.baseModels,
    scopes: c.get('tenant').scopes,
    defaultSource: config.RINGLET_DEFAULT_SOURCE,
    resolveAlias: (alias) => aliases.resolve(alias, (work) => c.executionCtx.waitUntil(work)),
    headerToken,
  })
}

/** The caller's own, for the adapters' homes; an empty one is none. */
export function adapterTokenOf(c: AppContext): string | undefined {
  const token = c.req.header('x-adapter-token') || undefined
  if (!tokenSchema.optional().safeParse(token).success) {
    throw new RingletError('field_invalid', 'x-adapter-token is no token', { param: 'x-adapter-token' })
  }
  return token
}

/** The home answers while the likely node already loads. */
async function authorize(c: AppContext, resolved: ResolvedSelection, deps: ForwardDeps): Promise<AdapterSelection> {
  const { selection, adapterTokens } = resolved
  if (asksHomes(selection)) {
    c.executionCtx.waitUntil(prefetchEarly(await hintOf(c, resolved), deps))
  }
  const verdict = await authorizeSelection(selection, adapterTokens, c.env.homes)
  if (verdict.kind === 'refused') {
    const { name, field } = resolved.named[verdict.index] ?? { name: '', field: '' }
    throw adapterNotFound(name, c.get('errorStyle'), field)
  }
  return verdict.selection
}

async function hintOf(c: AppContext, resolved: ResolvedSelection): Promise<PrefetchRequest> {
  const { requestId, traceparent, tenant } = known(c)
  return {
    ...resolved,
    tenantId: tenant.tenantId,
    cacheSalt: await c.env.cacheSalt(tenant.tenantId),
    requestId,
    traceparent,
    createdAt: Math.floor(c.env.now() / 1000),
  }
}

function asksHomes(selection: AdapterSelection): boolean {
  return selectionRefs(selection).some(checksCallers)
}

interface SendPlan {
  /** Unix ms. */
  startedAt: number
  request: ServeRequest
  resolved: ResolvedSelection
  /** With exact revisions. */
  selection: AdapterSelection
  admission: Admission
  sequences: number
}

async function send(c: AppContext, plan: SendPlan, deps: ForwardDeps): Promise<Response> {
  const services = c.env
  const { requestId, traceparent, errorStyle, tenant } = known(c)
  const { request, resolved, selection, admission } = plan
  const resumesAfter = request.stream ? lastEventId(c) : undefined
  const ending = new AbortController()
  const stopWatching = watchRequest({
    keyId: tenant.keyId,
    findWithin: services.directory.findWithin,
    renewLease: admission.renew,
    now: services.now,
    end: (error) => ending.abort(error),
  })
  const end = (usage: ForwardUsage) => {
    stopWatching()
    logEnd(c, plan.startedAt, resolved.usageName, usage)
    return admission.settle(toUsed(usage, resolved.usageName))
  }
  const { maxNewTokens } = admission
  return forward(
    {
      path: request.path,
      bodyText: request.bodyText,
      accept: c.req.header('accept'),
      clientHeaders: clientHeaders(c),
      lastEventId: resumesAfter,
      action: request.action,
      stream: request.stream,
      errorStyle,
      tenantId: tenant.tenantId,
      cacheSalt: await services.cacheSalt(tenant.tenantId),
      seed: Math.floor(services.random() * 2 ** 53),
      limits:
        maxNewTokens === undefined ? {} : { maxNewTokens: Math.max(1, Math.floor(maxNewTokens / plan.sequences)) },
      requestId,
      createdAt: Math.floor(services.now() / 1000),
      traceparent,
      selection,
      placementKey: resolved.placementKey,
      adapterTokens: resolved.adapterTokens,
      clientSignal: c.req.raw.signal,
      endSignal: ending.signal,
      onEnd: end,
    },
    deps,
  )
}

/** Each read of the context's own bag of variables copies it. */
function known(c: AppContext): Pick<RequestVariables, 'requestId' | 'traceparent' | 'errorStyle' | 'tenant'> {
  return {
    requestId: c.get('requestId'),
    traceparent: c.get('traceparent'),
    errorStyle: c.get('errorStyle'),
    tenant: c.get('tenant'),
  }
}

/** A stream's line in the request log is written at its start; this one says how it ended. */
function logEnd(c: AppContext, startedAt: number, adapter: string, usage: ForwardUsage): void {
  const { config, log, now } = c.env
  if (config.RINGLET_ACCESS_LOG === 'all' || usage.outcome !== 'ok') {
    const { requestId, tenant } = known(c)
    log('request_end', { requestId, tenant: tenant.tenantId, adapter, ms: Math.round(now() - startedAt), ...usage })
  }
}

/** What a client says about its stream to the node: that it wants to see the progress. */
function clientHeaders(c: AppContext): Record<string, string> {
  return c.req.header('x-progress') === undefined ? {} : { 'x-progress': '1' }
}

/** Browsers send an empty one when they have seen no event. */
function lastEventId(c: AppContext): string | undefined {
  const value = c.req.header('last-event-id')
  if (value !== undefined && value.length > MAX_EVENT_ID) {
    throw new RingletError('resume_unknown', 'last-event-id is not the id of an event')
  }
  return value === '' ? undefined : value
}

function toUsed(usage: ForwardUsage, adapter: string): UsageReport | undefined {
  if (usage.promptTokens + usage.generatedTokens === 0) {
    return undefined
  }
  return { adapter, requests: 1, promptTokens: usage.promptTokens, generatedTokens: usage.generatedTokens }
}
