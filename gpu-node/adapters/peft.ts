/**
 * A PEFT adapter directory → `LoraAdapter`, or a refusal that names the numbers in conflict. Fails closed: whatever in the
 * directory would change the model's output and is not applied refuses the adapter.
 */

import { RingletError } from '../../shared/errors.ts'
import type { BaseModule, ModelSpec } from '../model/model-spec.ts'
import type { LoraAdapter } from '../model/packed-adapter.ts'
import { MAX_CONFIG_BYTES, type PeftConfig, parseAdapterConfig } from './adapter-config.ts'
import { digestAdapter } from './adapter-digest.ts'
import { type BaseWeights, checkBaseCopies } from './base-copies.ts'
import type { FileVersions } from './file-version.ts'
import { emptyReport, type LoadReport, listNames, refusalMessage } from './load-report.ts'
import { buildLoraModule, buildSavedModule, type ModuleTensors } from './lora-module.ts'
import { PatternError } from './python-regex.ts'
import {
  type Allocate,
  allocateShared,
  type RawTensor,
  WEIGHT_FILE_LIMITS,
  type WeightFile,
  WeightFileError,
  type WeightFileLimits,
} from './raw-tensor.ts'
import { findScalings, findTargetModules, type Spelling } from './target-modules.ts'
import { fileSpelling, parseTensorName, type TensorPart, toBaseModule } from './tensor-names.ts'
import { CONFIG_FILE, readTextFile, readWeightFile } from './weight-file.ts'

export interface ReadOptions {
  /**
   * The base's own tensors. Needed for adapters on embeddings or heads that carry a copy of the base's weights, as PEFT writes
   * them; without it such an adapter is refused.
   */
  baseWeights?: BaseWeights
  /** The name under which the base is served; an adapter trained for another name is warned about. */
  baseName?: string
  limits?: WeightFileLimits
  /** Where file and numbers go; what it gives must stay as it is while the adapter is used. Shared memory of their own when absent. */
  allocate?: Allocate
  /** The files as they were looked at: others are not opened, and any that is not the same throws DamagedContentError. */
  versions?: FileVersions
}

/** Throws `RingletError` (adapter_refused), whose message has the report's first problems. */
export async function readPeftAdapter(
  dir: string,
  spec: Pick<ModelSpec, 'modules' | 'tiedHead'>,
  options: ReadOptions = {},
): Promise<{ adapter: LoraAdapter; report: LoadReport }> {
  const { adapter, report } = await inspectPeftAdapter(dir, spec, options)
  if (adapter === undefined) {
    throw new RingletError('adapter_refused', refusalMessage(report))
  }
  return { adapter, report }
}

/** As `readPeftAdapter`; a refusal is in the report. */
export async function inspectPeftAdapter(
  dir: string,
  spec: Pick<ModelSpec, 'modules' | 'tiedHead'>,
  options: ReadOptions = {},
): Promise<{ adapter: LoraAdapter | undefined; report: LoadReport }> {
  const report = emptyReport()
  try {
    const text = readTextFile(dir, CONFIG_FILE, MAX_CONFIG_BYTES, options.versions)
    if (text === undefined) {
      throw new WeightFileError(`the directory has no ${CONFIG_FILE}`)
    }
    const { config, problems, warnings } = parseAdapterConfig(text)
    report.problems.push(...problems)
    report.warnings.push(...warnings)
    if (config === undefined) {
      return { adapter: undefined, report }
    }
    const file = await readWeightFile(dir, options.limits ?? WEIGHT_FILE_LIMITS, options.allocate, options.versions)
    const adapter = await assemble(config, file, spec, options, report)
    return { adapter: report.accepted ? adapter : undefined, report }
  } catch (error) {
    if (error instanceof WeightFileError || error instanceof PatternError) {
      report.problems.push(error.message)
      return { adapter: undefined, report }
    }
    throw error
  }
}

async function assemble(
  config: PeftConfig,
  file: WeightFile,
  spec: Pick<ModelSpec, 'modules' | 'tiedHead'>,
  options: ReadOptions,
  report: LoadReport,
): Promise<LoraAdapter> {
  Object.assign(report, { file: file.file, format: file.format, fileBytes: file.fileBytes })
  Object.assign(report, { dora: config.use_dora, rslora: config.use_rslora })
  checkBaseName(config, options.baseName, report)
  const { grouped, spelling } = groupByModule(file, spec.modules, report)
  checkTargets(config, grouped, spec, spelling, report)

  const context = { config, report, allocate: options.allocate ?? allocateShared }
  const lora = [...grouped].filter(([, tensors]) => isAdapted(tensors))
  const scalings = findScalings(
    config,
    lora.map(([name]) => name),
    spelling,
  )
  const modules = lora.map(([name, tensors]) =>
    buildLoraModule(spec.modules.get(name)!, tensors, scalings.get(name)!, context),
  )
  const savedModules = [...grouped]
    .filter(([, tensors]) => tensors.has('weight') || tensors.has('bias'))
    .map(([name, tensors]) => buildSavedModule(spec.modules.get(name)!, tensors, context))
  await checkBaseCopies(grouped, spec, options.baseWeights, report)

  const built = modules.filter((module) => module !== undefined)
  const saved = savedModules.filter((module) => module !== undefined)
  report.savedModules = saved.map((module) => module.name)
  report.maxRank = Math.max(0, ...built.map((module) => module.rank))
  checkEffect(report)
  report.digest = digestAdapter(
    [...grouped].map(([name, parts]) => ({
      name,
      rank: scalings.get(name)?.rank,
      scaling: scalings.get(name)?.scaling,
      parts: withoutBaseCopies(parts),
    })),
  )
  report.accepted = report.problems.length === 0
  return { digest: report.digest, maxRank: report.maxRank, modules: built, savedModules: saved }
}

/** Tensors by the base's module; what fits no module is unmatched. */
function groupByModule(
  file: WeightFile,
  modules: ReadonlyMap<string, BaseModule>,
  report: LoadReport,
): { grouped: Map<string, ModuleTensors>; spelling: Spelling } {
  const grouped = new Map<string, Map<TensorPart, RawTensor>>()
  const spellings = new Map<string, string>()
  const infixes = new Set<string>()
  report.unmatchedTensors.push(...file.otherTensors)
  for (const tensor of file.tensors) {
    const parsed = parseTensorName(tensor.name)
    const module = parsed && toBaseModule(parsed.module, modules)
    if (parsed === undefined || module === undefined) {
      report.unmatchedTensors.push(tensor.name)
      continue
    }
    const parts = grouped.get(module) ?? new Map<TensorPart, RawTensor>()
    if (parts.has(parsed.part)) {
      report.problems.push(`${module} has two tensors for ${parsed.part}`)
    }
    parts.set(parsed.part, tensor)
    grouped.set(module, parts)
    spellings.set(module, parsed.module)
    report.matchedTensors++
    if (parsed.infix !== undefined) {
      infixes.add(parsed.infix)
    }
  }
  if (infixes.size > 1) {
    report.problems.push(`the file holds ${infixes.size} adapters (${listNames([...infixes])}); it must hold one`)
  }
  if (report.unmatchedTensors.length > 0) {
    const named = listNames(report.unmatchedTensors)
    report.problems.push(`${report.unmatchedTensors.length} tensors fit no module of the base: ${named}`)
  }
  return { grouped, spelling: fileSpelling(spellings) }
}

/** The config and the file must agree on which modules are adapted. */
function checkTargets(
  config: PeftConfig,
  grouped: ReadonlyMap<string, ModuleTensors>,
  spec: Pick<ModelSpec, 'modules' | 'tiedHead'>,
  spelling: Spelling,
  report: LoadReport,
): void {
  const { targeted, saved, unknownSaved } = findTargetModules(config, spec.modules, spelling)
  const adapted = [...grouped].filter(([, tensors]) => isAdapted(tensors)).map(([name]) => name)
  const replaced = [...grouped].filter(([, tensors]) => tensors.has('weight')).map(([name]) => name)
  const strangers = targeted === undefined ? [] : adapted.filter((name) => !targeted.has(name))
  if (strangers.length > 0) {
    report.problems.push(
      `${strangers.length} modules have tensors but the config does not name them: ${listNames(strangers)}`,
    )
  }
  const unsaved = replaced.filter((name) => !saved.has(name))
  if (unsaved.length > 0) {
    report.problems.push(`${listNames(unsaved)} has a whole weight, but modules_to_save does not name it`)
  }
  const lostSaves = [...saved].filter((name) => !replaced.includes(name))
  if (lostSaves.length > 0) {
    report.problems.push(`modules_to_save names ${listNames(lostSaves)}, but the file has no weight for it`)
  }
  if (unknownSaved.length > 0) {
    report.warnings.push(`modules_to_save names ${listNames(unknownSaved)}, which the base does not have`)
  }
  checkMissing(
    [...(targeted ?? [])].filter((name) => !grouped.has(name)),
    adapted,
    report,
  )
  if (config.ensure_weight_tying && spec.tiedHead && [...grouped.keys()].some((name) => isEnd(name, spec.modules))) {
    report.problems.push('ensure_weight_tying on the embedding of a base whose head is tied to it; it is not applied')
  }
}

/** One layer's q_proj without tensors beside another's with them is a damaged file; a kind of module wholly absent is a choice. */
function checkMissing(missing: string[], adapted: string[], report: LoadReport): void {
  report.missingModules = missing
  const leaf = (name: string) => name.slice(name.lastIndexOf('.') + 1)
  const present = new Set(adapted.map(leaf))
  const torn = missing.filter((name) => present.has(leaf(name)))
  if (torn.length > 0) {
    report.problems.push(`the config names ${listNames(torn)}, but the file has no tensors for ${torn.length} of them`)
  }
  const absent = new Set(missing.filter((name) => !present.has(leaf(name))).map(leaf))
  if (absent.size > 0) {
    report.warnings.push(`the config names ${listNames([...absent])}, but the file has no tensors for any of them`)
  }
}

function checkEffect(report: LoadReport): void {
  if (report.problems.length > 0) {
    return
  }
  if (report.modules.length === 0 && report.savedModules.length === 0) {
    report.problems.push('the adapter adapts no module of this base')
    return
  }
  const zero = report.modules.filter((module) => module.zero)
  if (zero.length === report.modules.length && report.savedModules.length === 0) {
    report.problems.push(`zero effect: all ${zero.length} modules have a delta of zero`)
  } else if (zero.length > 0) {
    report.warnings.push(`${zero.length} of ${report.modules.length} modules have a delta of zero`)
  }
}

/** A different name proves nothing (mirrors, local paths); different dimensions do, and those refuse. */
function checkBaseName(config: PeftConfig, served: string | undefined, report: LoadReport): void {
  const trained = config.base_model_name_or_path ?? undefined
  report.baseName = trained
  if (served !== undefined && trained !== undefined && trained !== '' && trained !== served) {
    report.warnings.push(`trained on ${listNames([trained])}, served on ${served}`)
  }
}

function isAdapted(tensors: ModuleTensors): boolean {
  return [...tensors.keys()].some(
    (part) => part.startsWith('lora') || part === 'magnitude' || part.startsWith('embedding'),
  )
}

function isEnd(name: string, modules: ReadonlyMap<string, BaseModule>): boolean {
  return name === 'lm_head' || modules.get(name)?.kind === 'embedding'
}

function withoutBaseCopies(parts: ModuleTensors): ModuleTensors {
  return new Map([...parts].filter(([part]) => part !== 'baseWeight' && part !== 'baseBias'))
}
