/** Distances between logits and their reference. Pure. */

export interface Comparison {
  /** Largest absolute difference of two logits. */
  maxDifference: number
  /** The same over the standard deviation of the reference's logits. */
  relative: number
}

export function compareLogits(logits: Float32Array, reference: Float32Array): Comparison {
  let maxDifference = 0
  let sum = 0
  let squares = 0
  for (let i = 0; i < reference.length; i++) {
    const value = reference[i]!
    const difference = Math.abs(logits[i]! - value)
    if (!(difference <= maxDifference)) {
      // NaN must not pass as small, and no later difference takes its place.
      maxDifference = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference
    }
    sum += value
    squares += value * value
  }
  const mean = sum / reference.length
  const deviation = Math.sqrt(squares / reference.length - mean * mean)
  return { maxDifference, relative: maxDifference / deviation }
}

/** Mean log-probability of tokens 1 … n-1 given those before them; `logits`: `[n, vocab]`. */
export function meanLogprob(logits: Float32Array, tokens: readonly number[], vocab: number): number {
  let total = 0
  for (let i = 1; i < tokens.length; i++) {
    const row = logits.subarray((i - 1) * vocab, i * vocab)
    const largest = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
    const sum = row.reduce((a, b) => a + Math.exp(b - largest), 0)
    total += row[tokens[i]!]! - largest - Math.log(sum)
  }
  return total / (tokens.length - 1)
}
