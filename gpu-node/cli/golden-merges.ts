/** A golden case's merges, made here from their parts instead of read: tensors beside the reference's, then run like any adapter. */

import { join } from 'node:path'
import type { MergeStrategy, SignMethod } from '../../shared/adapter-ref.ts'
import { digestMerge } from '../adapters/adapter-digest.ts'
import { largestDifference } from '../adapters/merge/largest-difference.ts'
import { mergeAdapters } from '../adapters/merge/merge.ts'
import { toRecipe } from '../adapters/merge/merge-checks.ts'
import type { LoraAdapter } from '../model/packed-adapter.ts'

/** On any element of the merged tensors. */
const TOLERANCE = 1e-5

/** An entry of golden.json's `merges`; `adapter` is the reference's result. */
export interface GoldenMerge {
  strategy: MergeStrategy
  ids: string[]
  weights: number[]
  density?: number
  majority_sign_method?: SignMethod
  adapter: string
}

/** Throws where a tensor is further from the reference's than `TOLERANCE`. */
export async function mergeGolden(
  folder: string,
  merge: GoldenMerge,
  read: (directory: string) => Promise<LoraAdapter>,
): Promise<LoraAdapter> {
  const at = (name: string) => read(join(folder, 'adapters', name))
  const parts = await Promise.all(merge.ids.map(at))
  const recipe = toRecipe({
    kind: 'merge',
    strategy: merge.strategy,
    parts: merge.ids.map((id, i) => ({ ref: { source: 'local', id }, weight: merge.weights[i]! })),
    ...(merge.density === undefined ? {} : { density: merge.density }),
    ...(merge.majority_sign_method === undefined ? {} : { signMethod: merge.majority_sign_method }),
  })
  const merged = mergeAdapters(parts, recipe, digestMerge([recipe, parts.map((part) => part.digest)]))
  const difference = largestDifference(merged, await at(merge.adapter))
  if (!(difference <= TOLERANCE)) {
    throw new Error(`the merged tensors are up to ${difference} from the reference's; the limit is ${TOLERANCE}`)
  }
  return merged
}
