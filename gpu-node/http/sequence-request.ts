/** What the engine is asked for one choice: pure, from request, ticket and prepared prompt. */

import { foldSeed, type GenerateRequest } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { Ticket } from '../../shared/ticket.ts'
import type { SamplingParams, SequenceRequest } from '../engine/engine-types.ts'
import type { PreparedPrompt } from './prepare-prompt.ts'

export interface SequencePlan {
  /** Position among all sequences of the request: prompts in order, the choices of each in order. */
  sequence: number
  prompt: PreparedPrompt
  seed: number
}

/** The choices of a prompt differ by their seeds alone; the same prompt gives the same choices wherever it stands. */
export function planSequences(
  prompts: readonly PreparedPrompt[],
  request: Pick<GenerateRequest, 'bestOf' | 'sampling'>,
  ticketSeed: number,
): SequencePlan[] {
  const base = request.sampling.seed ?? foldSeed(ticketSeed)
  return prompts.flatMap((prompt, p) =>
    Array.from({ length: request.bestOf }, (_, choice) => ({
      sequence: p * request.bestOf + choice,
      prompt,
      seed: foldSeed(base + choice),
    })),
  )
}

export interface SequenceContext {
  ticket: Pick<Ticket, 'ticketId' | 'tenantId' | 'cacheSalt'>
  adapterDigest: string | undefined
  eosTokens: readonly number[]
  grammarId: string | undefined
  deadline: number
  delivered: readonly number[]
}

export function toSequenceRequest(
  plan: SequencePlan,
  request: GenerateRequest,
  context: SequenceContext,
): SequenceRequest {
  return {
    sequenceId: `${context.ticket.ticketId}:${plan.sequence}`,
    tenantId: context.ticket.tenantId,
    cacheSalt: context.ticket.cacheSalt,
    promptTokens: plan.prompt.tokens,
    deliveredTokens: Int32Array.from(context.delivered),
    sampling: toSamplingParams(request, plan.seed),
    // A prompt that is scored may ask for no token; without scores there would be nothing to do.
    maxNewTokens: request.promptLogprobs ? plan.prompt.maxNewTokens : Math.max(1, plan.prompt.maxNewTokens),
    eosTokens: context.eosTokens,
    ignoreEos: request.ignoreEos,
    promptLogprobs: request.promptLogprobs,
    deadline: context.deadline,
    ...(context.adapterDigest === undefined ? {} : { adapterDigest: context.adapterDigest }),
    ...(context.grammarId === undefined ? {} : { grammarId: context.grammarId }),
  }
}

function toSamplingParams(request: GenerateRequest, seed: number): SamplingParams {
  const { seed: _asked, logitBias, ...fields } = request.sampling
  return { ...fields, seed, alternatives: request.alternatives, ...(logitBias === undefined ? {} : { logitBias }) }
}

export function checkLogitBias(request: GenerateRequest, vocabSize: number, param: string): void {
  const unknown = request.sampling.logitBias?.find(([id]) => id >= vocabSize)
  if (unknown !== undefined) {
    const message = `\`logit_bias\`: token id ${unknown[0]} is not in the vocabulary of ${vocabSize}`
    throw new RingletError('field_invalid', message, { param })
  }
}
