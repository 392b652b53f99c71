/**
 * The arithmetic of merging, on flat tensors of one shape: pruning, sign election, weighted sums. PEFT's definitions
 * (`peft.utils.merge_utils`); TIES is arXiv 2306.01708, DARE arXiv 2311.03099. Pure.
 */

import type { SignMethod } from '../../../shared/adapter-ref.ts'

/** Σ wᵢ·tᵢ */
export function weightedSum(tensors: readonly Float32Array[], weights: readonly number[], out: Float32Array): void {
  out.fill(0)
  for (const [i, tensor] of tensors.entries()) {
    const weight = Math.fround(weights[i]!)
    for (let e = 0; e < out.length; e++) {
      out[e] = out[e]! + Math.fround(tensor[e]! * weight)
    }
  }
}

/**
 * Each element keeps only the tensors whose sign is the majority's, and is the mean of their weighted values. The majority
 * (of magnitudes: `total`, of heads: `frequency`) is found before the weights are applied; a sum of zero counts as positive.
 */
export function disjointMerge(
  tensors: readonly Float32Array[],
  weights: readonly number[],
  method: SignMethod,
  out: Float32Array,
): void {
  const rounded = weights.map((weight) => Math.fround(weight))
  for (let e = 0; e < out.length; e++) {
    let election = 0
    for (const tensor of tensors) {
      election = Math.fround(election + (method === 'total' ? tensor[e]! : Math.sign(tensor[e]!)))
    }
    const majority = election >= 0 ? 1 : -1
    let sum = 0
    let kept = 0
    for (let i = 0; i < tensors.length; i++) {
      const value = tensors[i]![e]!
      if (Math.sign(value) === majority) {
        sum = Math.fround(sum + Math.fround(value * rounded[i]!))
        kept++
      }
    }
    out[e] = sum / Math.max(kept, 1)
  }
}

/** Keeps the `trunc(density · n)` elements of largest magnitude; of equal ones at the border the first. */
export function pruneByMagnitude(tensor: Float32Array, density: number): Float32Array {
  const keep = Math.trunc(density * tensor.length)
  if (keep >= tensor.length) {
    return tensor
  }
  const out = new Float32Array(tensor.length)
  if (keep === 0) {
    return out
  }
  const { bits, atBorder } = magnitudeBorder(tensor, keep)
  const magnitudes = magnitudeBits(tensor)
  let left = atBorder
  for (let e = 0; e < tensor.length; e++) {
    const magnitude = magnitudes[e]! & 0x7fffffff
    if (magnitude > bits || (magnitude === bits && left-- > 0)) {
      out[e] = tensor[e]!
    }
  }
  return out
}

/** DARE: each element stays with probability `density` and is divided by it, so that the expectation stays. */
export function pruneAtRandom(tensor: Float32Array, density: number, random: () => number): Float32Array {
  if (density >= 1) {
    return tensor
  }
  return tensor.map((value) => (random() < density ? value / density : 0))
}

/**
 * The bits of the `keep`-th largest magnitude, and how many elements of just this magnitude belong to the kept ones. Floats
 * without sign order as their bits, so two passes of counting find it: upper half of the bits, then lower half.
 */
function magnitudeBorder(tensor: Float32Array, keep: number): { bits: number; atBorder: number } {
  const magnitudes = magnitudeBits(tensor)
  const upper = new Uint32Array(0x8000)
  for (const bits of magnitudes) {
    upper[(bits & 0x7fffffff) >>> 16]!++
  }
  const high = descend(upper, keep)
  const lower = new Uint32Array(0x10000)
  for (const bits of magnitudes) {
    if ((bits & 0x7fffffff) >>> 16 === high.bin) {
      lower[bits & 0xffff]!++
    }
  }
  const low = descend(lower, high.left)
  return { bits: (high.bin << 16) | low.bin, atBorder: low.left }
}

/** From the largest bin down: the bin in which the `count`-th element lies, and its place within. */
function descend(bins: Uint32Array, count: number): { bin: number; left: number } {
  let left = count
  for (let bin = bins.length - 1; ; bin--) {
    if (bins[bin]! >= left) {
      return { bin, left }
    }
    left -= bins[bin]!
  }
}

function magnitudeBits(tensor: Float32Array): Uint32Array {
  return new Uint32Array(tensor.buffer, tensor.byteOffset, tensor.length)
}
