/** A generation in OpenAI's shapes: whole replies and the pieces that chunks share. */

import type {
  ChatCompletion,
  ChatLogprob,
  Completion,
  CompletionLogprobs,
  OpenAiFinish,
  Usage,
} from '../../shared/api/openai-reply.ts'
import type { ParsedOpenAi } from '../../shared/api/openai-request.ts'
import type { Ticket } from '../../shared/ticket.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import { type ToolMessage, toolCallId, toToolMessage } from '../tools/tool-reply.ts'
import { type ChoiceFinish, type ChoiceToken, contentTokens } from './choice.ts'
import { bestFirst, type ChoiceResult } from './choice-results.ts'
import type { Generation, PromptScores } from './generation.ts'
import type { NodeIdentity } from './node-context.ts'
import type { PreparedPrompt } from './prepare-prompt.ts'
import { finiteLogprob, singleTokenText, tokenBytes } from './token-text.ts'

export interface OpenAiShape {
  tokenizer: Tokenizer
  parsed: ParsedOpenAi
  ticket: Pick<Ticket, 'requestId' | 'createdAt'>
  identity: Pick<NodeIdentity, 'version' | 'dtype' | 'baseModel'>
}

/** The same on every node that has a part in the answer: from the ticket and the request alone. */
export function envelope(shape: OpenAiShape, prefix: 'chatcmpl' | 'cmpl') {
  return {
    id: `${prefix}-${shape.ticket.requestId}`,
    created: shape.ticket.createdAt,
    model: shape.parsed.adapter.model || shape.identity.baseModel,
    system_fingerprint: `ringlet-${shape.identity.version}-${shape.identity.dtype}`,
  }
}

export function toChatCompletion(shape: OpenAiShape, generation: Generation, results: ChoiceResult[]): ChatCompletion {
  return {
    ...envelope(shape, 'chatcmpl'),
    object: 'chat.completion',
    choices: results.map((result, index) => {
      const { content, toolCalls } = messageOf(shape, generation, result)
      return {
        index,
        message: {
          role: 'assistant',
          content,
          refusal: null,
          ...(toolCalls.length === 0 ? {} : { tool_calls: toolCalls }),
        },
        logprobs: shape.parsed.reply.logprobs
          ? { content: toChatLogprobs(shape.tokenizer, contentTokens(result.tokens, result.finish)), refusal: null }
          : null,
        finish_reason: toOpenAiFinish(result.finish, toolCalls.length),
      }
    }),
    usage: usageOf(generation),
  }
}

function messageOf(shape: OpenAiShape, generation: Generation, result: ChoiceResult): ToolMessage {
  const parser = generation.createToolParser?.()
  return parser === undefined
    ? { content: result.text, toolCalls: [] }
    : toToolMessage(parser, result.text, (index) => toolCallId(shape.ticket.requestId, result.sequence, index))
}

/** Of each prompt's `best_of` sequences the best `n`, prompts in order. */
export function toCompletion(shape: OpenAiShape, generation: Generation, results: ChoiceResult[]): Completion {
  const { request } = shape.parsed
  const returned = generation.prompts.flatMap((_, p) => {
    const own = results.filter((result) => result.prompt === p)
    return request.bestOf > request.choices ? bestFirst(own).slice(0, request.choices) : own
  })
  return {
    ...envelope(shape, 'cmpl'),
    object: 'text_completion',
    choices: returned.map((result, index) => {
      const prompt = generation.prompts[result.prompt]
      const echoed = request.echoPrompt && prompt !== undefined ? prompt.text : ''
      const logprobs = createCompletionLogprobs(shape)
      return {
        index,
        text: echoed + result.text,
        logprobs: shape.parsed.reply.logprobs
          ? logprobs([
              ...(request.echoPrompt && prompt !== undefined
                ? promptEntries(prompt, generation.promptScores[result.prompt])
                : []),
              ...result.tokens,
            ])
          : null,
        finish_reason: toOpenAiFinish(result.finish),
      }
    }),
    usage: usageOf(generation),
  }
}

/** A prompt counts once, however many choices it has; all sequences count, also those of `best_of` that are not returned. */
export function usageOf(generation: Generation): Usage {
  const promptTokens = generation.prompts.reduce((sum, prompt) => sum + prompt.tokens.length, 0)
  const completionTokens = generation.choices.reduce((sum, choice) => sum + choice.tokenCount, 0)
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  }
}

export function toOpenAiFinish(finish: ChoiceFinish, toolCalls = 0): OpenAiFinish {
  return finish === 'length' ? 'length' : toolCalls > 0 ? 'tool_calls' : 'stop'
}

export function toChatLogprobs(tokenizer: Tokenizer, tokens: readonly ChoiceToken[]): ChatLogprob[] {
  const entry = (tokenId: number, logprob: number) => ({
    token: singleTokenText(tokenizer, tokenId),
    logprob: finiteLogprob(logprob),
    bytes: tokenBytes(tokenizer, tokenId),
  })
  return tokens.map((token) => ({
    ...entry(token.tokenId, token.logprob),
    top_logprobs: token.alternatives.map((alternative) => entry(alternative.tokenId, alternative.logprob)),
  }))
}

/** A prompt token, or a generated one. The first of a prompt has NaN. */
export type LoggedToken = Pick<ChoiceToken, 'tokenId' | 'logprob' | 'alternatives'>

export function promptEntries(prompt: PreparedPrompt, scores: PromptScores | undefined): LoggedToken[] {
  return Array.from(prompt.tokens, (tokenId, i) => ({
    tokenId,
    logprob: scores?.logprobs[i] ?? Number.NaN,
    alternatives: scores?.alternatives?.[i] ?? [],
  }))
}

/** The likeliest tokens, and the token itself where it is not among them: one more then. */
function toTopLogprobs(tokenizer: Tokenizer, token: LoggedToken): Record<string, number> {
  const listed = token.alternatives.some(({ tokenId }) => tokenId === token.tokenId)
  return Object.fromEntries(
    [...token.alternatives, ...(listed ? [] : [token])].map(({ tokenId, logprob }) => [
      singleTokenText(tokenizer, tokenId),
      finiteLogprob(logprob),
    ]),
  )
}

/** Offsets run on from call to call, so that a stream's chunks continue each other; `before`: tokens that were told elsewhere. */
export function createCompletionLogprobs(
  shape: OpenAiShape,
  before: readonly number[] = [],
): (tokens: readonly LoggedToken[]) => CompletionLogprobs {
  let offset = before.reduce((sum, tokenId) => sum + singleTokenText(shape.tokenizer, tokenId).length, 0)
  const wantsTop = shape.parsed.request.alternatives > 0
  return (tokens) => {
    const logprobs: CompletionLogprobs = {
      tokens: [],
      token_logprobs: [],
      top_logprobs: wantsTop ? [] : null,
      text_offset: [],
    }
    for (const token of tokens) {
      const text = singleTokenText(shape.tokenizer, token.tokenId)
      logprobs.tokens.push(text)
      logprobs.token_logprobs.push(Number.isNaN(token.logprob) ? null : finiteLogprob(token.logprob))
      logprobs.text_offset.push(offset)
      logprobs.top_logprobs?.push(token.alternatives.length === 0 ? null : toTopLogprobs(shape.tokenizer, token))
      offset += text.length
    }
    return logprobs
  }
}
