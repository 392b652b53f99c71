/** Usage as CSV (RFC 4180), as the admin API and its command give it out. */

import type { UsageRow } from './edge-api.ts'

const COLUMNS = ['tenant', 'adapter', 'day', 'requests', 'promptTokens', 'generatedTokens'] as const

export function usageCsv(rows: readonly UsageRow[]): string {
  const lines = rows.map((row) => COLUMNS.map((column) => csvField(row[column])).join(','))
  return `${[COLUMNS.join(','), ...lines].join('\r\n')}\r\n`
}

/** Adapter ids come from callers: quoted where needed, and never read as a formula by a spreadsheet. */
function csvField(value: string | number): string {
  const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value)
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
