/**
 * Several adapters → one, as PEFT's `add_weighted_adapter`: for each module the adapters that have it; A and B apart, each
 * weighted with √|wᵢ·scalingᵢ|, the sign on A; `cat` stacks the ranks, which is the exact weighted sum of the deltas. Pure.
 */

import { RingletError } from '../../../shared/errors.ts'
import type { LoraAdapter, LoraModule } from '../../model/packed-adapter.ts'
import { firstNotFinite } from '../lora-module.ts'
import { sharedFloats } from '../raw-tensor.ts'
import { checkParts, type MergeRecipe } from './merge-checks.ts'
import { seededRandom } from './seeded-random.ts'
import { disjointMerge, pruneAtRandom, pruneByMagnitude, weightedSum } from './task-arithmetic.ts'

/** One module of one part. */
interface Contribution {
  part: number
  weight: number
  module: LoraModule
}

/** `digest`: what the result is known by. Throws merge_invalid. */
export function mergeAdapters(parts: readonly LoraAdapter[], recipe: MergeRecipe, digest: string): LoraAdapter {
  checkParts(parts, recipe)
  const names = new Set(parts.flatMap((part) => part.modules.map((module) => module.name)))
  const modules: LoraModule[] = []
  for (const name of names) {
    const contributions: Contribution[] = []
    for (const [part, adapter] of parts.entries()) {
      const module = adapter.modules.find((candidate) => candidate.name === name)
      if (module !== undefined) {
        contributions.push({ part, weight: recipe.weights[part]!, module })
      }
    }
    modules.push(recipe.strategy === 'cat' ? concatenate(name, contributions) : combine(name, contributions, recipe))
  }
  const overflown = modules.find(({ loraA, loraB }) => [loraA, loraB].some((it) => firstNotFinite(it) !== undefined))
  if (overflown !== undefined) {
    const message = `the weights are too large: ${overflown.name} leaves single precision`
    throw new RingletError('merge_invalid', message, { param: 'merged_adapters.weights' })
  }
  if (modules.every(({ loraA, loraB }) => isZero(loraA) || isZero(loraB))) {
    throw new RingletError('merge_invalid', 'the merged adapter has no effect: all its deltas are zero')
  }
  return { digest, maxRank: Math.max(...modules.map((module) => module.rank)), modules, savedModules: [] }
}

/** A = [w₁s₁A₁; w₂s₂A₂; …], B = [B₁ B₂ …]: ranks add up, and B·A is Σ wᵢsᵢBᵢAᵢ. */
function concatenate(name: string, contributions: readonly Contribution[]): LoraModule {
  const rank = contributions.reduce((sum, { module }) => sum + module.rank, 0)
  const inFeatures = contributions[0]!.module.loraA.length / contributions[0]!.module.rank
  const outFeatures = contributions[0]!.module.loraB.length / contributions[0]!.module.rank
  const loraA = sharedFloats(rank * inFeatures)
  const loraB = sharedFloats(outFeatures * rank)
  let row = 0
  for (const { weight, module } of contributions) {
    const factor = weight * module.scaling
    for (let e = 0; e < module.loraA.length; e++) {
      loraA[row * inFeatures + e] = module.loraA[e]! * factor
    }
    for (let out = 0; out < outFeatures; out++) {
      loraB.set(module.loraB.subarray(out * module.rank, (out + 1) * module.rank), out * rank + row)
    }
    row += module.rank
  }
  return { name, rank, loraA, loraB, scaling: 1 }
}

function combine(name: string, contributions: readonly Contribution[], recipe: MergeRecipe): LoraModule {
  const scaled = contributions.map(({ weight, module }) => weight * module.scaling)
  const roots = scaled.map((value) => Math.sqrt(Math.abs(value)))
  const { rank, loraA, loraB } = contributions[0]!.module
  const out = { a: sharedFloats(loraA.length), b: sharedFloats(loraB.length) }
  // The sign on one side only: on both it would cancel.
  const signed = roots.map((root, i) => (scaled[i]! < 0 ? -root : root))
  combineTensors(name, 'A', contributions, signed, recipe, out.a)
  combineTensors(name, 'B', contributions, roots, recipe, out.b)
  return { name, rank, loraA: out.a, loraB: out.b, scaling: 1 }
}

function combineTensors(
  name: string,
  matrix: 'A' | 'B',
  contributions: readonly Contribution[],
  weights: readonly number[],
  { strategy, density, signMethod, seed }: MergeRecipe,
  out: Float32Array,
): void {
  const tensors = contributions.map(({ module }) => (matrix === 'A' ? module.loraA : module.loraB))
  const dropped = () =>
    tensors.map((tensor, i) =>
      pruneAtRandom(tensor, density, seededRandom('dare', seed, contributions[i]!.part, name, matrix)),
    )
  switch (strategy) {
    case 'linear':
      weightedSum(tensors, weights, out)
      return
    case 'ties':
      disjointMerge(
        tensors.map((tensor) => pruneByMagnitude(tensor, density)),
        weights,
        signMethod,
        out,
      )
      return
    case 'dare_linear':
      weightedSum(dropped(), weights, out)
      return
    case 'dare_ties':
      disjointMerge(dropped(), weights, signMethod, out)
      return
    case 'cat':
      throw new TypeError('cat is no element-wise combination')
  }
}

function isZero(values: Float32Array): boolean {
  return values.every((value) => value === 0)
}
