/** `ringlet lint DIR`: would a node serve this adapter, and what did it find? Exit code 1 when it would not. */

import { statSync } from 'node:fs'
import { defineCommand } from 'citty'
import { RingletError } from '../../shared/errors.ts'
import { baseWeightsOf } from '../adapters/base-weights.ts'
import { type LoadReport, printReport } from '../adapters/load-report.ts'
import { inspectPeftAdapter } from '../adapters/peft.ts'
import { openCheckpoint } from '../model/checkpoint.ts'
import { packAdapter } from '../model/pack-adapter.ts'
import { checkArgs } from './command-args.ts'

const args = {
  directory: {
    type: 'positional',
    required: true,
    description: 'adapter directory (adapter_config.json and adapter_model.*)',
  },
  base: { type: 'string', description: 'directory of the base model', default: 'models/demo/base' },
  json: { type: 'boolean', description: 'print the report as JSON', default: false },
} as const

export const lintCommand = defineCommand({
  meta: { name: 'lint', description: 'Check an adapter directory against a base model and print the load report' },
  args,
  run: async ({ args: given }) => {
    checkArgs(given, args)
    const report = await lintAdapter(given.directory, given.base)
    process.stdout.write(given.json ? `${JSON.stringify(report, null, 2)}\n` : printReport(report))
    if (!report.accepted) {
      process.exitCode = 1
    }
  },
})

/** As a node reads it, packing included: some adapters are well formed and still can't be applied exactly. */
export async function lintAdapter(directory: string, baseDirectory: string): Promise<LoadReport> {
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new Error(`${directory} is no directory`)
  }
  const base = await openCheckpoint(baseDirectory)
  try {
    const { adapter, report } = await inspectPeftAdapter(directory, base.spec, { baseWeights: baseWeightsOf(base) })
    if (adapter !== undefined) {
      await packAdapter(adapter, base).catch((error: unknown) => {
        if (!(error instanceof RingletError)) {
          throw error
        }
        report.accepted = false
        report.problems.push(error.message)
      })
    }
    return report
  } finally {
    await base.close()
  }
}
