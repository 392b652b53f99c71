/**
 * What is done to a row of scores before temperature: watermark, logit bias, penalties, grammar mask, in this order (LoRAX's;
 * OpenAI's bias before its penalties). All of it in place, all of it off for most sequences.
 */

import type { SamplingParams } from '../engine-types.ts'
import { addWatermark } from './watermark.ts'

/** Which tokens a sequence has seen, for the penalties; kept only when a penalty asks for it. */
export class TokenHistory {
  readonly #seen: Set<number> | undefined
  readonly #generated: Map<number, number> | undefined

  constructor(params: SamplingParams, promptTokens: Int32Array, generatedTokens: Int32Array) {
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
    scores[token] = (scores[token] as number) + bias
  }
  const repetition = params.repetitionPenalty ?? 1
  for (const token of history.seen) {
    const score = scores[token] as number
    scores[token] = score > 0 ? score / repetition : score * repetition
  }
  for (const [token, count] of history.generated) {
    const penalty = (params.frequencyPenalty ?? 0) * count + (params.presencePenalty ?? 0)
    scores[token] = (scores[token] as number) - penalty
  }
  if (mask !== undefined) {
    applyMask(scores, mask)
  }
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
