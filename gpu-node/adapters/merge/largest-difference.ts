/** How far two adapters' tensors are apart: for comparing a merge with a reference's. Pure. */

import type { LoraAdapter, LoraModule } from '../../model/packed-adapter.ts'

/**
 * The largest absolute difference of any element of A, B or scaling; infinite where modules or shapes differ. The reference
 * may have more ranks than ours in a module: they must be zeros (PEFT fills `cat` up to one rank everywhere).
 */
export function largestDifference(ours: LoraAdapter, reference: LoraAdapter): number {
  const byName = new Map(ours.modules.map((module) => [module.name, module]))
  if (byName.size !== reference.modules.length) {
    return Number.POSITIVE_INFINITY
  }
  return reference.modules.reduce((most, expected) => {
    const module = byName.get(expected.name)
    return Math.max(most, module === undefined ? Number.POSITIVE_INFINITY : moduleDifference(module, expected))
  }, 0)
}

function moduleDifference(ours: LoraModule, reference: LoraModule): number {
  const inFeatures = ours.loraA.length / ours.rank
  const outFeatures = ours.loraB.length / ours.rank
  const { rank } = reference
  if (
    rank < ours.rank ||
    reference.loraA.length !== rank * inFeatures ||
    reference.loraB.length !== rank * outFeatures
  ) {
    return Number.POSITIVE_INFINITY
  }
  let most = Math.abs(ours.scaling - reference.scaling)
  for (const [i, value] of reference.loraA.entries()) {
    // Ranks are rows of A: those that ours lacks come last.
    most = Math.max(most, Math.abs(value - (ours.loraA[i] ?? 0)))
  }
  for (let out = 0; out < outFeatures; out++) {
    for (let r = 0; r < rank; r++) {
      const own = r < ours.rank ? ours.loraB[out * ours.rank + r]! : 0
      most = Math.max(most, Math.abs(reference.loraB[out * rank + r]! - own))
    }
  }
  return most
}
