/**
 * From a row of logits to a token: scores changed, temperature, truncation, one random number, log-probabilities.
 * A function of the row, the sequence's parameters and tokens, and the draw's number; docs/sampling.md defines every step.
 */

import type { GeneratedToken, SamplingParams, TokenAlternative } from '../engine-types.ts'
import { LogitsKernel, NO_WEIGHT } from './logits-kernel.ts'
import { uniform } from './philox.ts'
import { changeScores, leavesScores, type TokenHistory } from './score-changes.ts'
import { Survivors } from './survivors.ts'

/** What the next draw of one sequence depends on. */
export interface DrawContext {
  params: SamplingParams
  history: TokenHistory
  /** Last token of prompt and generation. */
  previousToken: number
  /** How many tokens were generated before this one, delivered ones included. */
  draw: number
  mask: Int32Array | undefined
}

export type Draw =
  | { kind: 'token'; token: GeneratedToken }
  /** The model gave NaN or no finite logit: there is nothing to sample from. */
  | { kind: 'not_finite' }
  /** Bias and mask leave no token. */
  | { kind: 'nothing_allowed' }

/** Holds scratch space for one row; the rows of a step take turns. */
export class Sampler {
  readonly #kernel: LogitsKernel
  readonly #survivors: Survivors

  constructor(vocabSize: number) {
    this.#kernel = new LogitsKernel(vocabSize)
    this.#survivors = new Survivors(this.#kernel)
  }

  /** `logits` has `vocabSize` elements and is not changed. */
  sample(logits: Float32Array, context: DrawContext): Draw {
    const { params } = context
    const kernel = this.#kernel
    kernel.scores.set(logits)
    let best = kernel.max()
    if (!Number.isFinite(best)) {
      return { kind: 'not_finite' }
    }
    const logTotal = best + Math.log(kernel.sumExp(best))
    if (context.mask !== undefined || !leavesScores(params)) {
      changeScores(kernel.scores, params, context.history, context.previousToken, context.mask)
      best = kernel.max()
      if (best === -Infinity) {
        return { kind: 'nothing_allowed' }
      }
    }
    const tokenId = isGreedy(params) ? kernel.indexOf(best) : this.#draw(best, context)
    const token: GeneratedToken = { tokenId, logprob: logprobOf(logits, tokenId, logTotal) }
    if (params.alternatives > 0) {
      token.alternatives = likeliest(logits, params.alternatives, logTotal)
    }
    return { kind: 'token', token }
  }

  /** Of `tokenId` under the unchanged distribution, and of the likeliest; NaN when the row is not finite. */
  score(logits: Float32Array, tokenId: number, alternatives: number): GeneratedToken {
    this.#kernel.scores.set(logits)
    const best = this.#kernel.max()
    const logTotal = best + Math.log(this.#kernel.sumExp(best))
    const token: GeneratedToken = { tokenId, logprob: logprobOf(logits, tokenId, logTotal) }
    if (alternatives > 0) {
      token.alternatives = likeliest(logits, alternatives, logTotal)
    }
    return token
  }

  /** Inverse transform over the surviving tokens in the order of their ids. */
  #draw(best: number, { params, draw }: DrawContext): number {
    const kernel = this.#kernel
    const total = kernel.weigh(best, 1 / temperatureOf(params))
    const random = uniform(params.seed, draw)
    if (!truncates(params)) {
      return firstBeyond(kernel.weights, kernel.weights.length, random * total)
    }
    const survivors = this.#survivors
    survivors.select(total, params)
    const at = firstBeyond(survivors.weights, survivors.count, random * survivors.sum())
    return survivors.tokens[at] as number
  }
}

export function isGreedy({ doSample, temperature }: SamplingParams): boolean {
  return !doSample || temperature === 0
}

/** Beyond these, reciprocals leave single precision; below the one any difference in score decides, above the other none. */
const SMALLEST_TEMPERATURE = 1e-30
const LARGEST_TEMPERATURE = 1e30

export function temperatureOf({ temperature }: SamplingParams): number {
  return Math.min(Math.max(temperature, SMALLEST_TEMPERATURE), LARGEST_TEMPERATURE)
}

export function truncates(params: SamplingParams): boolean {
  const { topK, topP = 1, minP = 0, typicalP = 1 } = params
  return topK !== undefined || topP < 1 || minP > 0 || typicalP < 1
}

/** The first index at which the running sum exceeds `target`; where rounding keeps it from that, the last possible one. */
export function firstBeyond(weights: Float32Array, count: number, target: number): number {
  let sum = 0
  let last = 0
  for (let i = 0; i < count; i++) {
    const weight = weights[i] as number
    if (weight > NO_WEIGHT) {
      sum += weight
      if (sum > target) {
        return i
      }
      last = i
    }
  }
  return last
}

export function logprobOf(logits: Float32Array, tokenId: number, logTotal: number): number {
  // Rounding could lift it a hair above 0.
  return Math.min(0, (logits[tokenId] as number) - logTotal)
}

/** The `count` likeliest tokens, likeliest first, ties by id. */
export function likeliest(logits: Float32Array, count: number, logTotal: number): TokenAlternative[] {
  const wanted = Math.min(count, logits.length)
  const ids = wanted > 64 ? sortedIds(logits).subarray(0, wanted) : insertedIds(logits, wanted)
  return Array.from(ids, (tokenId) => ({ tokenId, logprob: logprobOf(logits, tokenId, logTotal) }))
}

function sortedIds(logits: Float32Array): Int32Array {
  const ids = Int32Array.from(logits.keys())
  return ids.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b)
}

/** Insertion into a short sorted list: nearly every token is refused by one comparison. */
function insertedIds(logits: Float32Array, count: number): Int32Array {
  const ids = new Int32Array(count)
  let filled = 0
  let least = -Infinity
  for (let token = 0; token < logits.length; token++) {
    const logit = logits[token] as number
    if (filled === count && logit <= least) {
      continue
    }
    let at = filled < count ? filled++ : count - 1
    while (at > 0 && (logits[ids[at - 1] as number] as number) < logit) {
      ids[at] = ids[at - 1] as number
      at--
    }
    ids[at] = token
    least = logits[ids[filled - 1] as number] as number
  }
  return ids
}
