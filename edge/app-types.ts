/** What the app's parts share: the services of an isolate, and what is known of one request. */

import type { Context } from 'hono'
import type { AliasStore } from './adapters/alias-store.ts'
import type { HomeCheckOptions } from './adapters/home-check.ts'
import type { TokenDirectory } from './auth/token-directory.ts'
import type { EdgeConfig } from './edge-config.ts'
import type { FleetRegistryBinding } from './fleet/fleet-client.ts'
import type { FleetView } from './fleet/fleet-view.ts'
import type { ErrorStyle } from './proxy/forward-types.ts'
import type { ProxyState } from './proxy/proxy-state.ts'
import type { TenantCounters } from './tenants/tenant-counters.ts'
import type { TenantStore, TokenRecord } from './tenants/tenant-store.ts'
import type { UsageOutbox } from './tenants/usage-outbox.ts'

/** Made once an isolate from the Worker's bindings; the app sees no others. */
export interface EdgeServices {
  /** The page at `/docs`, HTML. */
  tryPage: string
  config: EdgeConfig
  tenants: TenantStore
  directory: TokenDirectory
  aliases: AliasStore
  /** The object that owns a tenant's counters. */
  counters: (tenantId: string) => DurableObjectStub<TenantCounters>
  usageOutbox: UsageOutbox
  homes: HomeCheckOptions
  registry: FleetRegistryBinding
  fleetView: FleetView
  proxyState: ProxyState
  /** Hex; the same for all requests of a tenant, and nobody's to guess. */
  cacheSalt: (tenantId: string) => Promise<string>
  fetch: typeof fetch
  now: () => number
  random: () => number
  log: (event: string, fields: Readonly<Record<string, string | number | boolean>>) => void
}

/** Filled by those who learn it. */
export interface RequestLog {
  tenant?: string
  keyId?: string
  adapter?: string
  error?: string
}

export interface RequestVariables {
  requestId: string
  traceparent: string
  errorStyle: ErrorStyle
  /** `Server-Timing` entries of the edge: name and milliseconds. */
  timings: [name: string, ms: number][]
  /** What the request's log line will say besides method, route and status. */
  requestLog: RequestLog
  /** Behind the tenants' door. */
  tenant: TokenRecord
}

export interface AppEnv {
  Bindings: EdgeServices
  Variables: RequestVariables
}
export type AppContext = Context<AppEnv>
