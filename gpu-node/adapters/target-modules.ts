/** Which base modules an adapter_config.json names, and the rank and scaling of each: PEFT's matching rules. Pure. */

import type { BaseModule } from '../model/model-spec.ts'
import type { PeftConfig } from './adapter-config.ts'
import { firstMatches } from './python-regex.ts'

/** PEFT's shorthand for every linear module but the output head. */
const ALL_LINEAR = 'all-linear'

export interface TargetModules {
  /** Modules of the base that the config adapts; `undefined` where the config leaves the choice to the file. */
  targeted: ReadonlySet<string> | undefined
  /** Modules of the base that `modules_to_save` replaces. */
  saved: ReadonlySet<string>
  /** `modules_to_save` entries that name no module the base lets adapters replace. */
  unknownSaved: string[]
}

/** Names of the base's modules as the adapter's file spells them, by which PEFT matches. */
export type Spelling = (module: string) => string

const OWN_NAMES: Spelling = (module) => module

/** Throws PatternError where a pattern can't be run. */
export function findTargetModules(
  config: PeftConfig,
  modules: ReadonlyMap<string, BaseModule>,
  spelling: Spelling = OWN_NAMES,
): TargetModules {
  const ours = new Map([...modules.keys()].map((module) => [spelling(module), module]))
  const toOurs = (names: readonly string[]) => new Set(names.map((name) => ours.get(name)!))
  const all = [...ours.keys()]
  const saved = all.filter((name) => config.modules_to_save.some((saved) => endsWithName(name, saved)))
  const unknownSaved = config.modules_to_save.filter((wanted) => !all.some((name) => endsWithName(name, wanted)))
  if (config.target_modules === null || config.target_modules === undefined) {
    return { targeted: undefined, saved: toOurs(saved), unknownSaved }
  }
  const excluded = excludedModules(config, all)
  const candidates = all.filter((name) => !excluded.has(name) && !saved.includes(name))
  const isLinear = (name: string) => modules.get(ours.get(name)!)!.kind === 'linear' && ours.get(name) !== 'lm_head'
  const targeted = targetedModules(config, config.target_modules, candidates, isLinear)
  return { targeted: toOurs(targeted), saved: toOurs(saved), unknownSaved }
}

/** rank and scaling of each named module, by `rank_pattern`, `alpha_pattern` and rsLoRA (arXiv 2312.03732). */
export function findScalings(
  config: PeftConfig,
  names: readonly string[],
  spelling: Spelling = OWN_NAMES,
): Map<string, { rank: number; scaling: number }> {
  const spelled = names.map(spelling)
  const ranks = patternValues(config.rank_pattern, spelled)
  const alphas = patternValues(config.alpha_pattern, spelled)
  return new Map(
    names.map((name, i) => {
      const rank = ranks[i] ?? config.r
      const alpha = alphas[i] ?? config.lora_alpha
      return [name, { rank, scaling: config.use_rslora ? alpha / Math.sqrt(rank) : alpha / rank }]
    }),
  )
}

/** The first pattern, in the file's order, that matches the name's end after a dot or the whole name. */
function patternValues(patterns: ReadonlyMap<string, number>, names: readonly string[]): (number | undefined)[] {
  const values = [...patterns.values()]
  const matches = firstMatches([...patterns.keys()], names, { before: '^(?:.*\\.)?(?:', after: ')$' })
  return matches.map((index) => (index === undefined ? undefined : values[index]))
}

function excludedModules(config: PeftConfig, all: string[]): Set<string> {
  const { exclude_modules: exclude } = config
  if (exclude === null || exclude === undefined || exclude.length === 0) {
    return new Set()
  }
  if (typeof exclude !== 'string') {
    return new Set(all.filter((name) => exclude.some((entry) => endsWithName(name, entry))))
  }
  const matches = firstMatches([exclude], all)
  return new Set(all.filter((_, i) => matches[i] !== undefined))
}

function targetedModules(
  config: PeftConfig,
  target: string | string[],
  candidates: string[],
  isLinear: (name: string) => boolean,
): string[] {
  if (typeof target !== 'string') {
    const inLayers = layerFilter(config, candidates)
    const whole = new Set(target)
    // A module named by its whole path is taken in any layer.
    return candidates.filter(
      (name) => whole.has(name) || (target.some((entry) => name.endsWith(`.${entry}`)) && inLayers(name)),
    )
  }
  if (target.toLowerCase() === ALL_LINEAR) {
    return candidates.filter(isLinear)
  }
  const matches = firstMatches([target], candidates)
  return candidates.filter((_, i) => matches[i] !== undefined)
}

/** `layers_to_transform` with `layers_pattern`: is the name in one of the layers? */
function layerFilter(config: PeftConfig, candidates: string[]): (name: string) => boolean {
  const { layers_to_transform: wanted, layers_pattern: layersPattern } = config
  if (wanted === null || wanted === undefined || (Array.isArray(wanted) && wanted.length === 0)) {
    return () => true
  }
  const layers = new Set([wanted].flat())
  const lists = [layersPattern ?? []].flat().filter((list) => list !== '')
  if (lists.length === 0) {
    return (name) => layers.has(Number(/^.*?\.[^.]*\.(\d+)\./.exec(name)?.[1] ?? -1))
  }
  const numbers = { before: '^(?:.*?\\.)?(?:', after: `)\\.(?:${[...layers].join('|')})\\.` }
  const matches = firstMatches(lists, candidates, numbers)
  const kept = new Set(candidates.filter((_, i) => matches[i] !== undefined))
  return (name) => kept.has(name)
}

function endsWithName(name: string, entry: string): boolean {
  return name === entry || name.endsWith(`.${entry}`)
}
