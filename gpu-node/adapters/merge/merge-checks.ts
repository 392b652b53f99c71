/** What can be merged, and how: refusals name the adapter, the module and the numbers. Pure. */

import type { AdapterSelection, MergeStrategy, SignMethod } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import type { LoraAdapter } from '../../model/packed-adapter.ts'

/** A merge without its parts, every default filled in: equal recipes over equal parts are equal adapters. */
export interface MergeRecipe {
  strategy: MergeStrategy
  weights: number[]
  /** Of ties, dare_linear and dare_ties; 1 for the others. */
  density: number
  signMethod: SignMethod
  seed: number
}

/** Each part is a load; more is no sensible request. */
export const MAX_MERGE_PARTS = 32

/** Defaults are PEFT's; DARE without a seed drops by seed 0, so that the same request is the same adapter. */
export function toRecipe(selection: Extract<AdapterSelection, { kind: 'merge' }>): MergeRecipe {
  const { strategy, parts, density, signMethod = 'total', seed = 0 } = selection
  if (parts.length === 0 || parts.length > MAX_MERGE_PARTS) {
    throw invalid(`a merge has 1 to ${MAX_MERGE_PARTS} adapters; given: ${parts.length}`, 'ids')
  }
  const weights = parts.map((part) => part.weight)
  const bad = weights.find((weight) => !Number.isFinite(weight))
  if (bad !== undefined) {
    throw invalid(`merge weights are finite numbers; given: ${bad}`, 'weights')
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw invalid(`the seed of a merge is an integer from 0 to 2^53 - 1; given: ${seed}`, 'seed')
  }
  // With one adapter there is nothing to elect or to interfere with; PEFT takes its weight alone then.
  if (parts.length === 1) {
    return { strategy: 'linear', weights, density: 1, signMethod: 'total', seed: 0 }
  }
  const pruned = strategy === 'ties' || strategy === 'dare_linear' || strategy === 'dare_ties'
  if (pruned && density === undefined) {
    throw invalid(`merge_strategy ${strategy} needs a density`, 'density')
  }
  if (pruned && !(density! > 0 && density! <= 1)) {
    throw invalid(`density is above 0 and at most 1; given: ${density}`, 'density')
  }
  // Fields that a strategy does not use are set alike, so that they don't make one merge into several.
  return {
    strategy,
    weights,
    density: pruned ? density! : 1,
    signMethod: strategy === 'ties' || strategy === 'dare_ties' ? signMethod : 'total',
    seed: strategy === 'dare_linear' || strategy === 'dare_ties' ? seed : 0,
  }
}

export function checkParts(parts: readonly LoraAdapter[], { strategy }: MergeRecipe): void {
  for (const [i, part] of parts.entries()) {
    checkPart(part, `adapter ${i + 1} of ${parts.length}`)
  }
  if (strategy === 'cat') {
    return
  }
  const ranks = new Map<string, { rank: number; part: number }>()
  for (const [i, part] of parts.entries()) {
    for (const { name, rank } of part.modules) {
      const first = ranks.get(name) ?? { rank, part: i }
      ranks.set(name, first)
      if (first.rank !== rank) {
        throw invalid(
          `merge_strategy ${strategy} needs equal ranks: ${name} has rank ${first.rank} in adapter ${first.part + 1} ` +
            `and ${rank} in adapter ${i + 1}; cat merges any ranks`,
          'merge_strategy',
        )
      }
    }
  }
}

/** Features that are no sum of deltas. */
function checkPart(part: LoraAdapter, which: string): void {
  const saved = part.savedModules[0]
  if (saved !== undefined) {
    throw invalid(`${which} replaces ${saved.name} as a whole (modules_to_save); it can't be merged`, 'ids')
  }
  for (const { name, magnitude, loraBias } of part.modules) {
    if (magnitude !== undefined || loraBias !== undefined) {
      const feature = magnitude === undefined ? 'a bias of lora_B' : "DoRA's magnitudes"
      throw invalid(`${which} has ${feature} on ${name}; it can't be merged`, 'ids')
    }
  }
}

function invalid(message: string, field: string): RingletError {
  return new RingletError('merge_invalid', message, { param: `merged_adapters.${field}` })
}
