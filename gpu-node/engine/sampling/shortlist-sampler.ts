/**
 * The sampler's draw from a shortlist in place of the whole row. It gives the token that `Sampler` gives, or none: where what
 * is not on the list, or the device's rounding of its sums, could make a difference. Scores are computed here anew, so that only
 * sums are the device's.
 */

import type { GeneratedToken, SamplingParams, Shortlist } from '../engine-types.ts'
import { LogitsKernel } from './logits-kernel.ts'
import { uniform } from './philox.ts'
import {
  type Draw,
  type DrawContext,
  firstBeyond,
  isGreedy,
  likeliest,
  logprobOf,
  temperatureOf,
  truncates,
} from './sampler.ts'
import { changeListed, leavesScores } from './score-changes.ts'
import { Survivors } from './survivors.ts'

/** The token lies in this span of the row, and `finish` takes its logits. */
export interface SpanDraw {
  kind: 'span'
  span: number
  list: Shortlist
  context: DrawContext
  /** Σ of the spans before it, of all, and the point that is looked for; in units of the list's sums. */
  before: number
  total: number
  target: number
}

/**
 * Relative error of the device's sums of exponentials, with room: terms are within 2^-21 (their arguments, of which those that
 * count are below 20, within 2^-24 each way), sums of a span's 256 terms within 2^-20.
 */
const SUM_ERROR = 1e-5
/** Of scores that the device changed, over the largest of them: three roundings, and parameters in single precision. */
const SCORE_ERROR = 2 ** -20

/** False where no shortlist could do. */
export function canShortlist({ watermark, topK, topP = 1, typicalP = 1 }: SamplingParams): boolean {
  // The watermark changes half of the vocabulary; typical_p needs the entropy of whatever is before it.
  return watermark !== true && (typicalP === 1 || topK !== undefined || topP < 1)
}

export class ShortlistSampler {
  readonly #vocabSize: number
  /** Of the list, and of a span. */
  readonly #kernel: LogitsKernel
  readonly #survivors: Survivors
  readonly #span: LogitsKernel

  constructor(vocabSize: number, spanLength: number, longest: number) {
    this.#vocabSize = vocabSize
    this.#kernel = new LogitsKernel(longest)
    this.#survivors = new Survivors(this.#kernel)
    this.#span = new LogitsKernel(spanLength)
  }

  draw(list: Shortlist, context: DrawContext): Draw | SpanDraw | undefined {
    const { params, mask, history } = context
    const { best: shift, logitSum } = list
    // What is not finite, or far from the scores, is left to the whole row.
    if (!(Math.abs(shift) < 1e30 && logitSum > 1e-30 && logitSum < 1e30)) {
      return undefined
    }
    const { tokens, logits } = sortedById(list)
    const changed = !leavesScores(params)
    const { scores } = this.#kernel
    scores.fill(-Infinity)
    scores.set(logits)
    if (changed || mask !== undefined) {
      changeListed(scores.subarray(0, tokens.length), tokens, params, history, mask)
    }
    const best = this.#kernel.max()
    if (!Number.isFinite(best)) {
      return undefined
    }
    const error = changed ? SCORE_ERROR * largestOf(scores, tokens.length) : 0
    const floor = this.#floor(tokens.length, error)
    const position = isGreedy(params)
      ? best > floor
        ? this.#kernel.indexOf(best)
        : undefined
      : this.#drawAt(list, context, { best, floor, error })
    if (position === undefined || typeof position !== 'number') {
      return position
    }
    const logTotal = shift + Math.log(logitSum)
    const token: GeneratedToken = { tokenId: tokens[position]!, logprob: logprobOf(logits, position, logTotal) }
    if (params.alternatives > 0) {
      const alternatives =
        changed || mask !== undefined ? undefined : this.#alternatives(tokens, logits, params, logTotal, floor)
      if (alternatives === undefined) {
        return undefined
      }
      token.alternatives = alternatives
    }
    return { kind: 'token', token }
  }

  /** `logits`: those of the span. */
  finish({ span, list, context, before, total, target }: SpanDraw, logits: Float32Array): Draw | undefined {
    const { params, history, mask } = context
    const first = span * this.#span.scores.length
    const tokens = Int32Array.from(logits, (_, i) => first + i)
    const { scores, weights } = this.#span
    scores.fill(-Infinity)
    scores.set(logits)
    changeListed(scores.subarray(0, logits.length), tokens, params, history, mask)
    this.#span.weigh(list.best, 1 / temperatureOf(params))
    const at = firstBeyond(weights, logits.length, target - before)
    let sum = before
    for (let i = 0; i < at; i++) {
      sum += weights[i]!
    }
    const changed = !leavesScores(params)
    const error = total * sumError(params, changed ? SCORE_ERROR * largestOf(scores, logits.length) : 0)
    if (!(target - sum > error && sum + weights[at]! - target > error)) {
      return undefined
    }
    const logTotal = list.best + Math.log(list.logitSum)
    return { kind: 'token', token: { tokenId: first + at, logprob: logprobOf(logits, at, logTotal) } }
  }

  /** No token outside the list has a score above it; -Infinity where none has any. */
  #floor(count: number, error: number): number {
    if (count >= this.#vocabSize) {
      return -Infinity
    }
    let least = Number.POSITIVE_INFINITY
    for (let i = 0; i < count; i++) {
      least = Math.min(least, this.#kernel.scores[i]!)
    }
    return least + 2 * error
  }

  /** Position in the list. */
  #drawAt(
    list: Shortlist,
    context: DrawContext,
    { best, floor, error }: { best: number; floor: number; error: number },
  ): number | SpanDraw | undefined {
    const { params, draw } = context
    const random = uniform(params.seed, draw)
    const scale = 1 / temperatureOf(params)
    const listTotal = this.#kernel.weigh(best, scale)
    const complete = floor === -Infinity
    if (!truncates(params)) {
      return complete
        ? firstBeyond(this.#kernel.weights, this.#kernel.weights.length, random * listTotal)
        : spanOf(list, context, random)
    }
    const total = complete ? listTotal : Math.exp((list.best - best) * scale) * sumOf(list.sums)
    if (!complete && !this.#survivorsAreListed(total, params, { floor, best, scale, error })) {
      return undefined
    }
    this.#survivors.select(total, params)
    const { weights, count, tokens } = this.#survivors
    return tokens[firstBeyond(weights, count, random * this.#survivors.sum())]
  }

  #survivorsAreListed(
    total: number,
    params: SamplingParams,
    { floor, best, scale, error }: { floor: number; best: number; scale: number; error: number },
  ): boolean {
    const { topK, topP = 1, minP = 0, typicalP = 1 } = params
    const survivors = this.#survivors
    if (topK === undefined && topP === 1) {
      return typicalP === 1 && Math.exp((floor - best) * scale) < 0.99 * minP
    }
    if (topK !== undefined) {
      survivors.select(total, { ...params, topP: 1, minP: 0, typicalP: 1 })
      return this.#leastScore() > floor
    }
    const off = sumError(params, error)
    const counts = [1 - off, 1 + off].map((factor) => {
      survivors.select(total * factor, { ...params, minP: 0, typicalP: 1 })
      return survivors.sum() >= topP * total * factor ? survivors.count : Number.NaN
    })
    return counts[0] === counts[1] && this.#leastScore() > floor
  }

  #leastScore(): number {
    const { tokens, count } = this.#survivors
    let least = Number.POSITIVE_INFINITY
    for (let i = 0; i < count; i++) {
      least = Math.min(least, this.#kernel.scores[tokens[i]!]!)
    }
    return least
  }

  #alternatives(
    tokens: Int32Array,
    logits: Float32Array,
    { alternatives }: SamplingParams,
    logTotal: number,
    floor: number,
  ): GeneratedToken['alternatives'] {
    const found = likeliest(logits, alternatives, logTotal)
    const last = found.at(-1)
    const enough = found.length === Math.min(alternatives, this.#vocabSize)
    if (last === undefined || !enough || logits[last.tokenId]! <= floor) {
      return undefined
    }
    return found.map(({ tokenId, logprob }) => ({ tokenId: tokens[tokenId]!, logprob }))
  }
}

/** Places are counted in the digits behind a token's, so that plain numbers are sorted. */
function sortedById({ tokens, logits }: Shortlist): { tokens: Int32Array; logits: Float32Array } {
  const count = tokens.length
  const keys = new Float64Array(count)
  for (let i = 0; i < count; i++) {
    keys[i] = tokens[i]! * count + i
  }
  keys.sort()
  const sorted = { tokens: new Int32Array(count), logits: new Float32Array(count) }
  for (let i = 0; i < count; i++) {
    const at = keys[i]! % count
    sorted.tokens[i] = tokens[at]!
    sorted.logits[i] = logits[at]!
  }
  return sorted
}

function spanOf(list: Shortlist, context: DrawContext, random: number): SpanDraw | undefined {
  // Alternatives are the list's, and the token need not be on it.
  if (context.params.alternatives > 0) {
    return undefined
  }
  const total = sumOf(list.sums)
  const target = random * total
  let before = 0
  for (const [span, sum] of list.sums.entries()) {
    if (before + sum > target) {
      return { kind: 'span', span, list, context, before, total, target }
    }
    before += sum
  }
  return undefined
}

function sumOf(values: Float32Array): number {
  return values.reduce((sum, value) => sum + value, 0)
}

/** `error`: of scores. */
function sumError(params: SamplingParams, error: number): number {
  return SUM_ERROR + error / temperatureOf(params)
}

function largestOf(scores: Float32Array, count: number): number {
  let largest = 0
  for (let i = 0; i < count; i++) {
    const size = Math.abs(scores[i]!)
    largest = Number.isFinite(size) && size > largest ? size : largest
  }
  return largest
}
