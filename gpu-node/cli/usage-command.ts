/** `ringlet usage`: who used how much of which adapter, by day. */

import type { UsagePage, UsageRow } from '../../shared/edge-api.ts'
import { usageCsv } from '../../shared/usage-csv.ts'
import { adminCommand } from './edge-access.ts'
import { printTable } from './print-table.ts'

export const usageCommand = adminCommand({
  name: 'usage',
  description: 'Tokens by tenant, adapter and day',
  args: {
    tenant: { type: 'string', description: 'one tenant only' },
    from: { type: 'string', description: 'first day, YYYY-MM-DD in UTC (default: this month)' },
    to: { type: 'string', description: 'last day' },
    csv: { type: 'boolean', description: 'print CSV' },
  },
  async run(args, admin) {
    const query = new URLSearchParams()
    for (const name of ['tenant', 'from', 'to'] as const) {
      const value = args[name]
      if (value !== undefined) {
        query.set(name, value)
      }
    }
    const items: UsageRow[] = []
    for (let after: string | null = ''; after !== null; ) {
      query.set('after', after)
      const page: UsagePage = await admin.call('GET', `/usage?${query}`)
      items.push(...page.items)
      after = page.next
    }
    if (args.csv) {
      process.stdout.write(usageCsv(items))
      return
    }
    if (args.json) {
      console.log(JSON.stringify(items, null, 2))
      return
    }
    const rows = items.map((row) => [
      row.day,
      row.tenant,
      row.adapter,
      row.requests,
      row.promptTokens,
      row.generatedTokens,
    ])
    printTable(['DAY', 'TENANT', 'ADAPTER', 'REQUESTS', 'PROMPT', 'GENERATED'], rows)
  },
})
