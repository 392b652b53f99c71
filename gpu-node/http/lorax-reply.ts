/** A generation in LoRAX's shapes: the whole reply, and stream events. */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import type { LoraxDetails, LoraxEvent, LoraxFinish, LoraxReply, LoraxToken } from '../../shared/api/lorax-reply.ts'
import type { LoraxReplyOptions } from '../../shared/api/lorax-request.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { ChoiceFinish, ChoiceToken } from './choice.ts'
import { bestFirst, type ChoiceResult } from './choice-results.ts'
import type { Generation } from './generation.ts'
import type { PreparedPrompt } from './prepare-prompt.ts'
import { finiteLogprob, jsonNumber, singleTokenText } from './token-text.ts'

export interface LoraxShape {
  tokenizer: Tokenizer
  request: GenerateRequest
  reply: LoraxReplyOptions
}

/** The best sequence's text and details; the others, best first, in `best_of_sequences`. */
export function toLoraxReply(shape: LoraxShape, generation: Generation, results: ChoiceResult[]): LoraxReply {
  const [best, ...others] = bestFirst(results)
  const prompt = generation.prompts[0]
  if (best === undefined || prompt === undefined) {
    throw new Error('a LoRAX request has one prompt and at least one sequence')
  }
  const prefill = toPrefill(shape, prompt, generation.promptScores[0]?.logprobs)
  const reply: LoraxReply = { generated_text: fullText(shape, prompt, best.text) }
  if (shape.reply.details || shape.reply.decoderInputDetails) {
    reply.details = {
      ...toSequence(shape, prompt, best, prefill),
      prompt_tokens: prompt.tokens.length,
      skipped_tokens: 0,
      ...(others.length === 0
        ? {}
        : {
            best_of_sequences: others.map((other) => ({
              generated_text: fullText(shape, prompt, other.text),
              ...toSequence(shape, prompt, other, prefill),
            })),
          }),
    }
  }
  return reply
}

/** `ended`: this token is the last one, and how it ended. */
export function toLoraxEvent(
  shape: LoraxShape,
  generation: Generation,
  token: ChoiceToken,
  ended: ChoiceFinish | undefined,
): LoraxEvent {
  const choice = generation.choices[0]
  const prompt = generation.prompts[0]
  if (ended === undefined || choice === undefined || prompt === undefined) {
    return { token: toLoraxToken(shape, token), generated_text: null, details: null }
  }
  return {
    token: toLoraxToken(shape, token),
    generated_text: fullText(shape, prompt, choice.text),
    details: shape.reply.details
      ? {
          finish_reason: toLoraxFinish(ended, choice.tokenCount, prompt.maxNewTokens),
          prompt_tokens: prompt.tokens.length,
          generated_tokens: choice.tokenCount,
          seed: seedOf(shape, generation.seeds[0] ?? 0),
        }
      : null,
  }
}

function toSequence(
  shape: LoraxShape,
  prompt: PreparedPrompt,
  result: ChoiceResult,
  prefill: LoraxDetails['prefill'],
): Pick<LoraxDetails, 'finish_reason' | 'generated_tokens' | 'seed' | 'prefill' | 'tokens'> {
  return {
    finish_reason: toLoraxFinish(result.finish, result.tokens.length, prompt.maxNewTokens),
    generated_tokens: result.tokens.length,
    seed: seedOf(shape, result.seed),
    prefill,
    tokens: result.tokens.map((token) => toLoraxToken(shape, token)),
  }
}

function toPrefill(
  shape: LoraxShape,
  prompt: PreparedPrompt,
  logprobs: Float32Array | undefined,
): LoraxDetails['prefill'] {
  if (!shape.reply.decoderInputDetails) {
    return []
  }
  return Array.from(prompt.tokens, (id, i) => ({
    id,
    text: singleTokenText(shape.tokenizer, id),
    logprob: jsonNumber(logprobs?.[i] ?? Number.NaN),
  }))
}

function toLoraxToken(shape: LoraxShape, token: ChoiceToken): LoraxToken {
  return {
    id: token.tokenId,
    text: token.tokenText,
    logprob: finiteLogprob(token.logprob),
    special: token.special,
    ...(shape.request.alternatives === 0
      ? {}
      : {
          alternative_tokens: token.alternatives.map((alternative) => ({
            id: alternative.tokenId,
            text: singleTokenText(shape.tokenizer, alternative.tokenId),
            logprob: finiteLogprob(alternative.logprob),
          })),
        }),
    skipped: false,
  }
}

/** LoRAX looks at the length before the end token: an end token on the last allowed place is `length`. */
function toLoraxFinish(finish: ChoiceFinish, generatedTokens: number, maxNewTokens: number): LoraxFinish {
  switch (finish) {
    case 'stop':
      return 'stop_sequence'
    case 'length':
      return 'length'
    case 'eos':
    case 'grammar_end':
      return generatedTokens >= maxNewTokens ? 'length' : 'eos_token'
  }
}

function seedOf(shape: LoraxShape, seed: number): number | null {
  return shape.request.sampling.doSample ? seed : null
}

function fullText(shape: LoraxShape, prompt: PreparedPrompt, text: string): string {
  return shape.request.echoPrompt ? prompt.text + text : text
}
