/** Usage by tenant, adapter and day, as JSON or CSV (RFC 4180). */

import { Hono } from 'hono'
import { z } from 'zod'
import { parseBody } from '../../shared/api/body-parse.ts'
import type { TenantView, UsageRow } from '../../shared/edge-api.ts'
import type { AppContext, AppEnv } from '../app-types.ts'

const day = z.iso.date()
const usageQuery = z.strictObject({
  tenant: z.string().max(64).optional(),
  /** Both days included, in UTC; without them the current month. */
  from: day.optional(),
  to: day.optional(),
  format: z.enum(['json', 'csv']).default('json'),
})

/** A Worker has six connections at a time; calls to Durable Objects beyond that wait anyway. */
const TENANTS_AT_ONCE = 6
const CSV_COLUMNS = ['tenant', 'adapter', 'day', 'requests', 'promptTokens', 'generatedTokens'] as const

export function usageRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/usage', async (c) => {
    const query = parseBody(usageQuery, c.req.query())
    const today = new Date(c.env.now()).toISOString().slice(0, 10)
    const from = query.from ?? `${today.slice(0, 7)}-01`
    const to = query.to ?? today
    const tenants = query.tenant === undefined ? await allTenants(c) : [await c.env.tenants.get(query.tenant)]
    const rows: UsageRow[] = []
    for (let i = 0; i < tenants.length; i += TENANTS_AT_ONCE) {
      const group = tenants.slice(i, i + TENANTS_AT_ONCE)
      rows.push(...(await Promise.all(group.map((tenant) => usageOf(c, tenant, from, to)))).flat())
    }
    if (query.format === 'csv') {
      c.header('content-disposition', `attachment; filename="usage-${from}-${to}.csv"`)
      return c.body(toCsv(rows), 200, { 'content-type': 'text/csv; charset=utf-8' })
    }
    return c.json({ from, to, items: rows })
  })
  return app
}

async function allTenants(c: AppContext): Promise<TenantView[]> {
  const tenants: TenantView[] = []
  for (let after: string | null = ''; after !== null; ) {
    const page = await c.env.tenants.list(after)
    tenants.push(...page.items)
    after = page.next
  }
  return tenants
}

async function usageOf(c: AppContext, tenant: TenantView, from: string, to: string): Promise<UsageRow[]> {
  const entries = await c.env.counters(tenant.id).usage(from, to)
  return entries.map((entry) => ({ tenant: tenant.name, ...entry }))
}

export function toCsv(rows: readonly UsageRow[]): string {
  const lines = rows.map((row) => CSV_COLUMNS.map((column) => csvField(row[column])).join(','))
  return `${[CSV_COLUMNS.join(','), ...lines].join('\r\n')}\r\n`
}

/** Adapter ids come from callers: quoted where needed, and never read as a formula by a spreadsheet. */
function csvField(value: string | number): string {
  const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value)
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
