/**
 * What is done to a row of scores before temperature: watermark, logit bias, penalties, grammar mask, in this order (LoRAX's;
 * OpenAI's bias before its penalties). All of it in place, all of it off for most sequences.
 */

import type { SamplingParams, ScoreChanges } from '../engine-types.ts'
import { ChangeList } from './change-list.ts'
import { addWatermark } from './watermark.ts'

/** Which tokens a sequence has seen, for the penalties; kept only when a penalty asks for it. */
export class TokenHistory {
  readonly #params: SamplingParams
  readonly #seen: Set<number> | undefined
  readonly #generated: Map<number, number> | undefined
  /** Made when first asked for. */
  #changes: ChangeList | undefined

  constructor(params: SamplingParams, promptTokens: Int32Array, generatedTokens: Int32Array) {
    this.#params = params
    if (repeats(params)) {
      this.#seen = new Set(promptTokens)
    }
    if (counts(params)) {
      this.#generated = new Map()
    }
    for (const token of generatedTokens) {
      this.add(token)
    }
  }

  /** A token was generated. */
  add(token: number): void {
    this.#seen?.add(token)
    this.#generated?.set(token, (this.#generated.get(token) ?? 0) + 1)
    if (this.#changes !== undefined) {
      this.#change(this.#changes, token)
    }
  }

  hasSeen(token: number): boolean {
    return this.#seen?.has(token) ?? false
  }

  /** Times that it was generated. */
  countOf(token: number): number {
    return this.#generated?.get(token) ?? 0
  }

  /** All that `changeScores` would do but mask and watermark; valid until the next `add`. */
  get changes(): ScoreChanges {
    if (this.#changes === undefined) {
      this.#changes = new ChangeList()
      for (const [token, bias] of this.#params.logitBias ?? []) {
        this.#changes.addBias(token, bias)
      }
      for (const token of new Set([...this.seen, ...[...this.generated].map(([token]) => token)])) {
        this.#change(this.#changes, token)
      }
    }
    return this.#changes.view()
  }

  #change(changes: ChangeList, token: number): void {
    const seen = this.hasSeen(token)
    const count = this.countOf(token)
    if (seen || count > 0) {
      changes.set(token, seen ? (this.#params.repetitionPenalty ?? 1) : 1, penaltyOf(this.#params, count))
    }
  }

  /** Tokens of prompt and generation. */
  get seen(): Iterable<number> {
    return this.#seen ?? []
  }

  /** Generated tokens with their counts. */
  get generated(): Iterable<[number, number]> {
    return this.#generated ?? []
  }
}

/** True when `changeScores` would do nothing but the mask. */
export function leavesScores(params: SamplingParams): boolean {
  const bias = params.logitBias !== undefined && params.logitBias.length > 0
  return !bias && !repeats(params) && !counts(params) && params.watermark !== true
}

/** `previousToken` is the last of prompt and generation. Bit `t` of `mask` is 1 when token `t` is allowed. */
export function changeScores(
  scores: Float32Array,
  params: SamplingParams,
  history: TokenHistory,
  previousToken: number,
  mask: Int32Array | undefined,
): void {
  if (params.watermark === true) {
    addWatermark(scores, previousToken)
  }
  for (const [token, bias] of params.logitBias ?? []) {
    scores[token] = bounded((scores[token] as number) + bias)
  }
  for (const token of history.seen) {
    scores[token] = repeated(scores[token] as number, params)
  }
  for (const [token, count] of history.generated) {
    scores[token] = bounded((scores[token] as number) - penaltyOf(params, count))
  }
  if (mask !== undefined) {
    applyMask(scores, mask)
  }
}

/** The same, to the last bit, for some tokens alone: `scores[i]` is that of `tokens[i]`, and these rise. No watermark. */
export function changeListed(
  scores: Float32Array,
  tokens: Int32Array,
  params: SamplingParams,
  history: TokenHistory,
  mask: Int32Array | undefined,
): void {
  for (const [token, bias] of params.logitBias ?? []) {
    const at = placeOf(tokens, token)
    if (at >= 0) {
      scores[at] = bounded((scores[at] as number) + bias)
    }
  }
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i] as number
    if (history.hasSeen(token)) {
      scores[i] = repeated(scores[i] as number, params)
    }
    const count = history.countOf(token)
    if (count > 0) {
      scores[i] = bounded((scores[i] as number) - penaltyOf(params, count))
    }
    if (mask !== undefined && (((mask[token >> 5] ?? 0) >>> (token & 31)) & 1) === 0) {
      scores[i] = -Infinity
    }
  }
}

/** Index of `token` among rising ones; -1 where it is not. */
function placeOf(tokens: Int32Array, token: number): number {
  let low = 0
  let high = tokens.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((tokens[middle] as number) < token) {
      low = middle + 1
    } else {
      high = middle
    }
  }
  return tokens[low] === token ? low : -1
}

/** The largest single; what is above it would be infinite, and differences to it no numbers. */
const LARGEST_SCORE = (2 - 2 ** -23) * 2 ** 127

function bounded(score: number): number {
  return Math.min(score, LARGEST_SCORE)
}

function repeated(score: number, { repetitionPenalty = 1 }: SamplingParams): number {
  return score > 0 ? bounded(score / repetitionPenalty) : score * repetitionPenalty
}

function penaltyOf({ frequencyPenalty = 0, presencePenalty = 0 }: SamplingParams, count: number): number {
  return count > 0 ? frequencyPenalty * count + presencePenalty : 0
}

export function applyMask(scores: Float32Array, mask: Int32Array): void {
  const words = Math.ceil(scores.length / 32)
  for (let word = 0; word < words; word++) {
    const bits = mask[word] ?? 0
    if (bits === -1) {
      continue
    }
    const first = word * 32
    const end = Math.min(first + 32, scores.length)
    if (bits === 0) {
      scores.fill(-Infinity, first, end)
      continue
    }
    for (let token = first; token < end; token++) {
      if (((bits >>> (token - first)) & 1) === 0) {
        scores[token] = -Infinity
      }
    }
  }
}

function repeats(params: SamplingParams): boolean {
  return params.repetitionPenalty !== undefined && params.repetitionPenalty !== 1
}

function counts(params: SamplingParams): boolean {
  return (params.frequencyPenalty ?? 0) !== 0 || (params.presencePenalty ?? 0) !== 0
}
