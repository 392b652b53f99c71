/** A golden case's rows as text. */

import type { WeightFormat } from '../model/graph/graph-form.ts'
import type { CaseReport, RunRow } from './golden-case.ts'

export function formatReport({ name, rows }: CaseReport, dtype: WeightFormat): string {
  const width = Math.max(4, ...rows.map((row) => row.run.length))
  const head = `\n${name} (${dtype})`
  const lines = rows.map((row) => formatRow(row, width))
  return [head, ...lines, ...summary(rows, dtype)].join('\n')
}

function formatRow(row: RunRow, width: number): string {
  const difference = row.maxDifference.toExponential(1)
  const relative = row.relative.toExponential(1)
  const greedy = `greedy ${row.agreed}/${row.wanted}`
  const cells = [row.run.padEnd(width), row.mode.padEnd(7), difference.padStart(8), relative.padStart(8), greedy]
  return `  ${cells.join('  ')}${row.ok ? '' : '  MISS'}`
}

/** For the quantised formats: how far they are from the reference, over the case. */
function summary(rows: readonly RunRow[], dtype: WeightFormat): string[] {
  if (dtype === 'f32' || rows.length === 0) {
    return []
  }
  const agreed = rows.reduce((sum, row) => sum + row.agreed, 0)
  const wanted = rows.reduce((sum, row) => sum + row.wanted, 0)
  const changes = rows.flatMap((row) => row.perplexityChange ?? [])
  const perplexity = changes.reduce((sum, change) => sum + change, 0) / Math.max(1, changes.length)
  const percent = (value: number): string => `${(100 * value).toFixed(2)} %`
  return [
    `  greedy tokens equal before the first difference: ${percent(agreed / wanted)}; perplexity ${perplexity < 0 ? '' : '+'}${percent(perplexity)}`,
  ]
}
