/** What reading an adapter found: what was matched, what was refused and why, with the numbers. Pure. */

import type { WeightFile } from './raw-tensor.ts'

export interface ModuleReport {
  name: string
  rank: number
  scaling: number
  dtype: string
  /** Its delta is zero. */
  zero: boolean
}

export interface LoadReport {
  accepted: boolean
  /** Absent where the adapter was refused before its tensors could be read. */
  digest: string | undefined
  file: string | undefined
  format: WeightFile['format'] | undefined
  fileBytes: number
  baseName: string | undefined
  modules: ModuleReport[]
  savedModules: string[]
  matchedTensors: number
  unmatchedTensors: string[]
  /** Modules that the config names and the file has no tensors for. */
  missingModules: string[]
  maxRank: number
  dora: boolean
  rslora: boolean
  /** Reasons for the refusal; empty when accepted. */
  problems: string[]
  warnings: string[]
}

export function emptyReport(): LoadReport {
  return {
    accepted: false,
    digest: undefined,
    file: undefined,
    format: undefined,
    fileBytes: 0,
    baseName: undefined,
    modules: [],
    savedModules: [],
    matchedTensors: 0,
    unmatchedTensors: [],
    missingModules: [],
    maxRank: 0,
    dora: false,
    rslora: false,
    problems: [],
    warnings: [],
  }
}

/** Names after the first few tell nothing new. */
const SHOWN = 5
const SHOWN_IN_REPORT = 12

export function listNames(names: readonly string[]): string {
  const shown = names.slice(0, SHOWN).map((name) => name.slice(0, 200).replace(/[^\x20-\x7e]/g, '?'))
  return names.length > SHOWN ? `${shown.join(', ')} and ${names.length - SHOWN} more` : shown.join(', ')
}

/** One message for the caller of a refused adapter. */
export function refusalMessage(report: LoadReport): string {
  const problems = report.problems.slice(0, SHOWN)
  const more = report.problems.length - problems.length
  return `adapter refused: ${problems.join('; ')}${more > 0 ? `; and ${more} more problems` : ''}`
}

/** For people: `ringlet lint`. */
export function printReport(report: LoadReport): string {
  const lines = [report.accepted ? 'accepted' : 'REFUSED']
  const add = (label: string, value: string | number | undefined) => {
    if (value !== undefined && value !== '') {
      lines.push(`  ${label.padEnd(10)} ${value}`)
    }
  }
  add('digest', report.digest)
  add('file', report.file && `${report.file} (${report.format ?? 'unreadable'}, ${report.fileBytes} bytes)`)
  add('base', report.baseName)
  add('modules', describeModules(report))
  add(
    'ranks',
    countBy(report.modules, (module) => String(module.rank)),
  )
  add(
    'scalings',
    countBy(report.modules, (module) => String(Number(module.scaling.toPrecision(6)))),
  )
  add(
    'dtypes',
    countBy(report.modules, (module) => module.dtype),
  )
  add('features', [report.dora ? 'DoRA' : '', report.rslora ? 'rsLoRA' : ''].filter(Boolean).join(', '))
  add('saved', listNames(report.savedModules))
  add('tensors', `${report.matchedTensors} matched, ${report.unmatchedTensors.length} unmatched`)
  add('unmatched', listNames(report.unmatchedTensors))
  add('missing', listNames(report.missingModules))
  add('zero', listNames(report.modules.filter((module) => module.zero).map((module) => module.name)))
  for (const label of ['problem', 'warning'] as const) {
    const all = report[`${label}s`]
    for (const one of all.slice(0, SHOWN_IN_REPORT)) {
      add(label, one)
    }
    add('', all.length > SHOWN_IN_REPORT ? `and ${all.length - SHOWN_IN_REPORT} more ${label}s; --json lists all` : '')
  }
  return `${lines.join('\n')}\n`
}

function describeModules(report: LoadReport): string {
  const leaves = countBy(report.modules, (module) => module.name.slice(module.name.lastIndexOf('.') + 1))
  return report.modules.length === 0 ? '' : `${report.modules.length}: ${leaves}`
}

/** "q_proj ×3, v_proj ×3" */
function countBy<T>(items: readonly T[], key: (item: T) => string): string {
  const counts = new Map<string, number>()
  for (const item of items) {
    counts.set(key(item), (counts.get(key(item)) ?? 0) + 1)
  }
  return [...counts].map(([name, count]) => `${name} ×${count}`).join(', ')
}
