/**
 * Which tokens may be drawn after top_k, top_p, min_p and typical_p, in transformers' order and with its rules; each filter
 * sees the probabilities renormalised over what the one before it left.
 */

import type { SamplingParams } from '../engine-types.ts'
import { NO_WEIGHT } from './logits-kernel.ts'
import { massPrefix } from './mass-prefix.ts'

/** Token ids, rising, and their weights (probabilities up to a common factor; the largest is 1). */
export class Survivors {
  readonly tokens: Int32Array
  readonly weights: Float32Array
  count = 0
  readonly #keys: Float32Array
  readonly #ones: Float32Array

  constructor(vocabSize: number) {
    this.tokens = new Int32Array(vocabSize)
    this.weights = new Float32Array(vocabSize)
    this.#keys = new Float32Array(vocabSize)
    this.#ones = new Float32Array(vocabSize).fill(1)
  }

  /** Starts anew with the tokens that the filters of `params` leave; `total` is the sum of `weights`. */
  select(scores: Float32Array, weights: Float32Array, total: number, params: SamplingParams): void {
    this.#gather(weights, Math.max(NO_WEIGHT, smallestUseful(weights.length, total, params)))
    if (params.topK !== undefined && params.topK < this.count) {
      this.#keepTopK(scores, params.topK)
    }
    if (params.topP !== undefined && params.topP < 1) {
      this.#keepTopP(scores, params.topK === undefined ? total : this.sum(), params.topP)
    }
    if (params.minP !== undefined && params.minP > 0) {
      const least = params.minP
      this.#keep((i) => (this.weights[i] as number) >= least)
    }
    if (params.typicalP !== undefined && params.typicalP < 1) {
      this.#keepTypical(params.typicalP)
    }
  }

  sum(): number {
    let sum = 0
    for (let i = 0; i < this.count; i++) {
      sum += this.weights[i] as number
    }
    return sum
  }

  #gather(weights: Float32Array, least: number): void {
    let count = 0
    for (let token = 0; token < weights.length; token++) {
      const weight = weights[token] as number
      if (weight > least) {
        this.tokens[count] = token
        this.weights[count] = weight
        count++
      }
    }
    this.count = count
  }

  /** Ties with the k-th stay, as in transformers. */
  #keepTopK(scores: Float32Array, k: number): void {
    this.#setKeysFromScores(scores)
    const { key } = massPrefix(this.#keys, this.#ones, this.count, k)
    this.#keep((i) => (this.#keys[i] as number) <= key)
  }

  /** The fewest of the likeliest tokens that reach `p`; of equal ones, those with the lower ids. */
  #keepTopP(scores: Float32Array, total: number, p: number): void {
    this.#setKeysFromScores(scores)
    const { key, lastIndex } = massPrefix(this.#keys, this.weights, this.count, p * total)
    this.#keep((i) => {
      const itsKey = this.#keys[i] as number
      return itsKey < key || (itsKey === key && i <= lastIndex)
    })
  }

  /** Locally typical sampling (Meister et al. 2022): tokens whose surprise is nearest to the entropy, until `mass`. */
  #keepTypical(mass: number): void {
    const total = this.sum()
    let entropy = 0
    for (let i = 0; i < this.count; i++) {
      const p = (this.weights[i] as number) / total
      entropy -= p > 0 ? p * Math.log(p) : 0
    }
    for (let i = 0; i < this.count; i++) {
      this.#keys[i] = Math.abs(Math.log((this.weights[i] as number) / total) + entropy)
    }
    const { key } = massPrefix(this.#keys, this.weights, this.count, mass * total)
    this.#keep((i) => (this.#keys[i] as number) <= key)
  }

  /** Distance below the best score; rising keys are falling probabilities. */
  #setKeysFromScores(scores: Float32Array): void {
    let best = -Infinity
    for (let i = 0; i < this.count; i++) {
      best = Math.max(best, scores[this.tokens[i] as number] as number)
    }
    for (let i = 0; i < this.count; i++) {
      this.#keys[i] = best - (scores[this.tokens[i] as number] as number)
    }
  }

  #keep(stays: (i: number) => boolean): void {
    let kept = 0
    for (let i = 0; i < this.count; i++) {
      if (stays(i)) {
        this.tokens[kept] = this.tokens[i] as number
        this.weights[kept] = this.weights[i] as number
        this.#keys[kept] = this.#keys[i] as number
        kept++
      }
    }
    this.count = kept
  }
}

/**
 * A weight so small that top_p or min_p drops its tokens in any case, so that they need not be gathered: with top_p, all
 * such tokens together hold less than 1 − p. Half of the exact bound, for rounding's sake. 0 (no bound) elsewhere.
 */
function smallestUseful(vocabSize: number, total: number, params: SamplingParams): number {
  if (params.topK !== undefined) {
    return 0
  }
  if (params.topP !== undefined && params.topP < 1) {
    return (0.5 * (1 - params.topP) * total) / vocabSize
  }
  return params.minP !== undefined && params.minP > 0 ? params.minP / 2 : 0
}
