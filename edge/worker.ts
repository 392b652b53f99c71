/** The Worker as Cloudflare runs it. Alone knows its bindings by name; makes the app's services from them, once an isolate. */

import { createAliasStore } from './adapters/alias-store.ts'
import { createApp } from './app.ts'
import type { EdgeServices } from './app-types.ts'
import { createTokenDirectory } from './auth/token-directory.ts'
import tryPage from './docs/try-page.html'
import { parseEdgeConfig } from './edge-config.ts'
import type { FleetRegistry } from './fleet/fleet-registry.ts'
import { createFleetView } from './fleet/fleet-view.ts'
import { createProxyState } from './proxy/proxy-state.ts'
import { createCacheSalts } from './tenants/cache-salt.ts'
import type { TenantCounters } from './tenants/tenant-counters.ts'
import { createTenantStore } from './tenants/tenant-store.ts'
import { createUsageOutbox } from './tenants/usage-outbox.ts'

export { FleetRegistry } from './fleet/fleet-registry.ts'
export { TenantCounters } from './tenants/tenant-counters.ts'

/** The text bindings are in `edge-config.ts`. */
interface Bindings {
  DB: D1Database
  TENANTS: DurableObjectNamespace<TenantCounters>
  FLEET: DurableObjectNamespace<FleetRegistry>
  /** A client certificate (`mtls_certificates`) to show to nodes; without it they are called plainly. */
  NODE_CERTIFICATE?: Fetcher
}

const app = createApp()
/** Bindings don't change while an isolate lives. */
let services: EdgeServices | undefined

export default {
  fetch(request, bindings, context) {
    try {
      services ??= createServices(bindings)
    } catch (error) {
      // Settings at fault: the operator reads which, callers don't.
      log('error', { message: error instanceof Error ? error.message : 'unknown' })
      return Response.json({ error: 'the edge is not set up', error_type: 'generation' }, { status: 500 })
    }
    return app.fetch(request, services, context)
  },
} satisfies ExportedHandler<Bindings>

function createServices(bindings: Bindings): EdgeServices {
  const config = parseEdgeConfig(bindings)
  const { DB, TENANTS, FLEET, NODE_CERTIFICATE } = bindings
  const now = () => Date.now()
  // A method of the global object: called on another, workerd refuses it.
  const callFetch: typeof fetch = (input, init) => fetch(input, init)
  const callNode: typeof fetch =
    NODE_CERTIFICATE === undefined ? callFetch : (input, init) => NODE_CERTIFICATE.fetch(input, init)
  const tenants = createTenantStore(DB, now)
  const location = config.RINGLET_FLEET_LOCATION
  // A stub belongs to the request that makes it.
  const counters = (tenantId: string) => TENANTS.get(TENANTS.idFromName(tenantId))
  return {
    config,
    tryPage,
    tenants,
    directory: createTokenDirectory(tenants, now),
    aliases: createAliasStore(DB, now),
    counters,
    usageOutbox: createUsageOutbox({
      now,
      send: async (tenantId, reports) => {
        await counters(tenantId).record(reports)
      },
      onLost: (tenant, report) => log('usage_unconfirmed', { tenant, ...report }),
    }),
    homes: {
      hubEndpoint: config.HF_ENDPOINT,
      hubOffline: config.HF_HUB_OFFLINE,
      pbaseEndpoint: config.PREDIBASE_GATEWAY_ENDPOINT,
      publicTtlMs: config.RINGLET_PUBLIC_TTL_SECONDS * 1000,
      privateTtlMs: config.RINGLET_PRIVATE_TTL_SECONDS * 1000,
      timeoutMs: config.RINGLET_HOME_TIMEOUT_MS,
      fetch: callFetch,
      now,
    },
    registry: {
      namespace: FLEET,
      shards: config.RINGLET_FLEET_SHARDS,
      ...(location === '' ? {} : { locationHint: location }),
    },
    fleetView: createFleetView({ now }),
    proxyState: createProxyState({ now }),
    cacheSalt: createCacheSalts(config.RINGLET_SALT_SECRET),
    fetch: callNode,
    now,
    random: Math.random,
    log,
  }
}

/** Workers' logs take one line of JSON as one record. */
function log(event: string, fields: Readonly<Record<string, string | number | boolean>>): void {
  console.log(JSON.stringify({ event, time: new Date().toISOString(), ...fields }))
}
