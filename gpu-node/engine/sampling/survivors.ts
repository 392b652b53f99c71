/**
 * Which tokens may be drawn after top_k, top_p, min_p and typical_p, in transformers' order and with its rules; each filter
 * sees the probabilities renormalised over what the one before it left.
 */

import type { SamplingParams } from '../engine-types.ts'
import { type LogitsKernel, NO_WEIGHT } from './logits-kernel.ts'
import { massPrefix } from './mass-prefix.ts'

/** The smallest single above 0. */
const LEAST_WEIGHT = 2 ** -149

/** Token ids, rising, and their weights (probabilities up to a common factor; the best token's is 1). */
export class Survivors {
  readonly tokens: Int32Array
  readonly weights: Float32Array
  count = 0
  readonly #kernel: LogitsKernel
  readonly #keys: Float32Array
  readonly #ones: Float32Array

  constructor(kernel: LogitsKernel) {
    this.#kernel = kernel
    this.tokens = kernel.keptTokens
    this.weights = kernel.kept
    this.#keys = new Float32Array(kernel.scores.length)
    this.#ones = new Float32Array(kernel.scores.length).fill(1)
  }

  /** Starts anew with what the kernel has weighed; `total` is the sum of the weights. */
  select(total: number, params: SamplingParams): void {
    const { topK, topP = 1, minP = 0, typicalP = 1 } = params
    if (topK !== undefined) {
      this.#gatherUntil(() => this.count >= topK)
      this.#keepTopK(topK)
      if (topP < 1) {
        this.#keepTopP(topP * this.sum())
      }
    } else if (topP < 1) {
      this.#gatherUntil(() => this.sum() >= topP * total)
      this.#keepTopP(topP * total)
    } else {
      this.count = this.#kernel.keepAbove(Math.max(NO_WEIGHT, minP / 2))
    }
    if (minP > 0) {
      this.#keepAtLeast(minP)
    }
    if (typicalP < 1) {
      this.#keepTypical(typicalP)
    }
  }

  sum(): number {
    let sum = 0
    for (let i = 0; i < this.count; i++) {
      sum += this.weights[i] as number
    }
    return sum
  }

  /** Gathers the likeliest tokens until they are enough; mostly a few suffice, and gathering few is fast. */
  #gatherUntil(isEnough: () => boolean): void {
    for (const limit of GATHER_LIMITS) {
      this.count = this.#kernel.keepAbove(limit)
      if (isEnough()) {
        return
      }
    }
  }

  /** Ties with the k-th stay, as in transformers. */
  #keepTopK(k: number): void {
    if (k < this.count) {
      this.#setKeysFromScores()
      this.#keepUpTo(massPrefix(this.#keys, this.#ones, this.count, k).key, this.count)
    }
  }

  /** The fewest of the likeliest tokens that reach `mass`; of equal ones, those with the lower ids. */
  #keepTopP(mass: number): void {
    this.#setKeysFromScores()
    const { key, lastIndex } = massPrefix(this.#keys, this.weights, this.count, mass)
    this.#keepUpTo(key, lastIndex)
  }

  #keepAtLeast(weight: number): void {
    let kept = 0
    for (let i = 0; i < this.count; i++) {
      kept = (this.weights[i] as number) >= weight ? this.#keep(i, kept) : kept
    }
    this.count = kept
  }

  /** Locally typical sampling (Meister et al. 2022): tokens whose surprise is nearest to the entropy, until `mass`. */
  #keepTypical(mass: number): void {
    // A probability that underflowed has an infinite surprise and would make the entropy 0 × ∞.
    this.#keepAtLeast(LEAST_WEIGHT)
    const total = this.sum()
    let entropy = 0
    for (let i = 0; i < this.count; i++) {
      const p = (this.weights[i] as number) / total
      const surprise = -Math.log(p)
      entropy += p * surprise
      this.#keys[i] = surprise
    }
    for (let i = 0; i < this.count; i++) {
      this.#keys[i] = Math.abs((this.#keys[i] as number) - entropy)
    }
    this.#keepUpTo(massPrefix(this.#keys, this.weights, this.count, mass * total).key, this.count)
  }

  /** Distance below the best score; rising keys are falling probabilities, and equal scores are equal keys. */
  #setKeysFromScores(): void {
    const { scores } = this.#kernel
    let best = -Infinity
    for (let i = 0; i < this.count; i++) {
      const score = scores[this.tokens[i] as number] as number
      this.#keys[i] = score
      best = score > best ? score : best
    }
    for (let i = 0; i < this.count; i++) {
      this.#keys[i] = best - (this.#keys[i] as number)
    }
  }

  /** Keeps smaller keys, and of equal ones those up to `lastIndex`. */
  #keepUpTo(key: number, lastIndex: number): void {
    let kept = 0
    for (let i = 0; i < this.count; i++) {
      const itsKey = this.#keys[i] as number
      kept = itsKey < key || (itsKey === key && i <= lastIndex) ? this.#keep(i, kept) : kept
    }
    this.count = kept
  }

  #keep(from: number, to: number): number {
    this.tokens[to] = this.tokens[from] as number
    this.weights[to] = this.weights[from] as number
    return to + 1
  }
}

/** Falling weights below which tokens are left out at first; the last leaves out only impossible ones. */
const GATHER_LIMITS = [2 ** -5, 2 ** -8, 2 ** -11, 2 ** -14, 2 ** -18, 2 ** -24, 2 ** -40, NO_WEIGHT]
