/**
 * Runs every golden case of a directory through checkpoint, adapter reader, packer and runner, and compares with the
 * reference's logits and greedy tokens: alone, and with all runs of a case in one batch.
 * `npm run golden -- DIR [--dtype f32|int8|int4] [--only CASE] [--merges]`; exits 1 on a miss. With `--merges` merged adapters
 * are made from their parts here, their tensors compared too.
 */

import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type { WeightFormat } from '../model/graph/graph-form.ts'
import { type CaseReport, runGoldenCase } from './golden-case.ts'
import { formatReport } from './golden-report.ts'

const DTYPES: readonly string[] = ['f32', 'int8', 'int4'] satisfies WeightFormat[]

const { values, positionals } = parseArgs({
  options: {
    dtype: { type: 'string', default: 'f32' },
    only: { type: 'string' },
    merges: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
  allowPositionals: true,
})
const directory = positionals[0]
if (values.help || directory === undefined || !isDtype(values.dtype)) {
  console.error('usage: npm run golden -- DIR [--dtype f32|int8|int4] [--only CASE] [--merges]')
  process.exit(values.help ? 0 : 2)
}
const reports: CaseReport[] = []
for (const name of await caseNames(directory, values.only)) {
  const report = await runGoldenCase(join(directory, name), name, values.dtype, { merges: values.merges })
  console.log(formatReport(report, values.dtype))
  reports.push(report)
}
if (reports.length === 0) {
  console.error(`${directory} has no golden case${values.only === undefined ? '' : ` '${values.only}'`}`)
  process.exit(1)
}
const rows = reports.flatMap((report) => report.rows)
const missed = rows.filter((row) => !row.ok)
const notCovered = reports.flatMap((report) => report.notCovered.map((text) => `${report.name}: ${text}`))
console.log(`\n${rows.length - missed.length} of ${rows.length} runs pass in ${reports.length} cases (${values.dtype})`)
for (const text of notCovered) {
  console.log(`not covered: ${text}`)
}
process.exitCode = missed.length > 0 || notCovered.length > 0 ? 1 : 0

function isDtype(value: string): value is WeightFormat {
  return DTYPES.includes(value)
}

async function caseNames(folder: string, only: string | undefined): Promise<string[]> {
  const found: string[] = []
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: Error) => {
    console.error(`${folder} can't be read: ${error.message}`)
    process.exit(2)
  })
  for (const entry of entries) {
    if (entry.isDirectory() && (only === undefined || entry.name === only)) {
      const files = await readdir(join(folder, entry.name))
      if (files.includes('golden.json')) {
        found.push(entry.name)
      }
    }
  }
  return found.sort()
}
