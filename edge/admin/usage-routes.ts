/** Usage by tenant, adapter and day, as JSON or CSV (RFC 4180), page by page of tenants: each one's counters are asked. */

import { Hono } from 'hono'
import { z } from 'zod'
import { parseBody } from '../../shared/api/body-parse.ts'
import type { TenantView, UsagePage, UsageRow } from '../../shared/edge-api.ts'
import { usageCsv } from '../../shared/usage-csv.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import type { Page } from '../tenants/tenant-store.ts'

const day = z.iso.date()
const usageQuery = z.strictObject({
  tenant: z.string().max(64).optional(),
  /** The tenants behind this name: `next` of the page before. */
  after: z.string().max(64).default(''),
  /** Both days included, in UTC; without them the current month. */
  from: day.optional(),
  to: day.optional(),
  format: z.enum(['json', 'csv']).default('json'),
})

/** Cloudflare counts the calls that one request makes. */
const TENANTS_A_PAGE = 100
/** A Worker has six connections at a time; calls to Durable Objects beyond that wait anyway. */
const TENANTS_AT_ONCE = 6

export function usageRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/usage', async (c) => {
    const query = parseBody(usageQuery, c.req.query())
    const today = new Date(c.env.now()).toISOString().slice(0, 10)
    const from = query.from ?? `${today.slice(0, 7)}-01`
    const to = query.to ?? today
    const tenants = await pageOf(c, query)
    const rows: UsageRow[] = []
    for (let i = 0; i < tenants.items.length; i += TENANTS_AT_ONCE) {
      const group = tenants.items.slice(i, i + TENANTS_AT_ONCE)
      rows.push(...(await Promise.all(group.map((tenant) => usageOf(c, tenant, from, to)))).flat())
    }
    if (query.format === 'csv') {
      c.header('content-disposition', `attachment; filename="usage-${from}-${to}.csv"`)
      if (tenants.next !== null) {
        // RFC 8288.
        const rest = new URLSearchParams({ format: 'csv', from, to, after: tenants.next })
        c.header('link', `<${c.req.path}?${rest}>; rel="next"`)
      }
      return c.body(usageCsv(rows), 200, { 'content-type': 'text/csv; charset=utf-8' })
    }
    return c.json({ from, to, items: rows, next: tenants.next } satisfies UsagePage)
  })
  return app
}

async function pageOf(c: AppContext, query: z.output<typeof usageQuery>): Promise<Page<TenantView>> {
  return query.tenant === undefined
    ? c.env.tenants.list(query.after, TENANTS_A_PAGE)
    : { items: [await c.env.tenants.get(query.tenant)], next: null }
}

async function usageOf(c: AppContext, tenant: TenantView, from: string, to: string): Promise<UsageRow[]> {
  const entries = await c.env.counters(tenant.id).usage(from, to)
  return entries.map((entry) => ({ tenant: tenant.name, ...entry }))
}
