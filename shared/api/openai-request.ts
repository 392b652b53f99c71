/** OpenAI's chat and completion bodies, with LoRAX's and Ringlet's extension fields, into a GenerateRequest. */

import { z } from 'zod'
import { checkObject, fieldInvalid, parseBody } from './body-parse.ts'
import { chatMessageSchema, toChatMessages, toolChoiceSchema, toolsSchema, toToolUse } from './chat-messages.ts'
import type { GenerateRequest, JsonValue, ParsedRequest, PromptInput } from './generate-request.ts'
import { MAX_SEQUENCES_PER_REQUEST } from './generate-request.ts'
import {
  checkSequenceCount,
  commonFields,
  sortStreamOptions,
  sortUnknownFields,
  toIncludeUsage,
  toOpenAiAdapter,
  toOpenAiSampling,
  toStop,
} from './openai-fields.ts'
import { toOutputFormat } from './output-format.ts'
import { tokenIdsSchema } from './token-ids.ts'

const MAX_TOP_LOGPROBS = 20

export const chatRequestSchema = z.looseObject({
  ...commonFields,
  messages: z.array(chatMessageSchema).min(1),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
  tools: toolsSchema.nullish(),
  tool_choice: toolChoiceSchema.nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  /** LoRAX: text before the tools, and a template variable. */
  tool_prompt: z.string().nullish(),
  guideline: z.string().nullish(),
  /** Variables of the chat template, as other servers call them. */
  chat_template_kwargs: z.record(z.string().max(64), z.unknown()).nullish(),
})
export type ChatRequest = z.infer<typeof chatRequestSchema>

export const completionRequestSchema = z.looseObject({
  ...commonFields,
  // Long lists first: each branch that fails reports all values.
  prompt: z.union(
    [tokenIdsSchema, z.string().min(1), z.array(z.string().min(1)).min(1), z.array(tokenIdsSchema).min(1)],
    {
      error: 'expected a string, an array of strings, an array of token ids or an array of those, none of them empty',
    },
  ),
  best_of: z.int().min(1).max(MAX_SEQUENCES_PER_REQUEST).nullish(),
  /** 0 with `echo` and `logprobs` scores the prompt. */
  max_tokens: z.int().min(0).nullish(),
  echo: z.boolean().nullish(),
  logprobs: z.int().min(0).max(MAX_TOP_LOGPROBS).nullish(),
})
export type CompletionRequest = z.infer<typeof completionRequestSchema>

/** What OpenAI's replies need besides the text. */
export interface OpenAiReplyOptions {
  includeUsage: boolean
  logprobs: boolean
}

export interface ParsedOpenAi extends ParsedRequest {
  api: 'openai'
  reply: OpenAiReplyOptions
}

export function parseChatRequest(body: unknown): ParsedOpenAi {
  checkObject(body)
  const unused = sortUnknownFields(body, Object.keys(chatRequestSchema.shape))
  const given = parseBody(chatRequestSchema, body)
  const chat = toChatMessages(given.messages)
  const includeUsage = toIncludeUsage(given)
  if (given.top_logprobs && !given.logprobs) {
    throw fieldInvalid(['top_logprobs'], '`top_logprobs` needs `logprobs`: true')
  }
  if (
    given.max_tokens != null &&
    given.max_completion_tokens != null &&
    given.max_tokens !== given.max_completion_tokens
  ) {
    throw fieldInvalid(['max_tokens'], '`max_tokens` and `max_completion_tokens` say different numbers')
  }
  const maxNewTokens = given.max_completion_tokens ?? given.max_tokens ?? undefined
  const toolUse = toToolUse(
    given.tools,
    given.tool_choice,
    given.parallel_tool_calls ?? true,
    given.tool_prompt ?? undefined,
  )
  const choices = given.n ?? 1
  const common = toCommonRequest(given)
  const templateVariables: Record<string, JsonValue> = {
    // What JSON.parse made is JSON.
    ...(given.chat_template_kwargs as Record<string, JsonValue> | null | undefined),
    ...(given.guideline == null ? {} : { guideline: given.guideline }),
  }
  return {
    api: 'openai',
    route: '/v1/chat/completions',
    stream: given.stream ?? false,
    adapter: toOpenAiAdapter(given),
    ignored: [...unused, ...common.ignored, ...chat.ignored],
    request: {
      ...common.request,
      prompts: [{ kind: 'chat', messages: chat.messages, templateVariables }],
      choices,
      bestOf: choices,
      echoPrompt: false,
      promptLogprobs: false,
      alternatives: given.logprobs ? (given.top_logprobs ?? 0) : 0,
      ...(maxNewTokens === undefined ? {} : { maxNewTokens }),
      ...(toolUse === undefined ? {} : { toolUse }),
    },
    reply: { includeUsage, logprobs: given.logprobs ?? false },
  }
}

/** OpenAI's default length on this route, kept so that a bare prompt doesn't fill the context. */
const DEFAULT_COMPLETION_TOKENS = 16

export function parseCompletionRequest(body: unknown): ParsedOpenAi {
  checkObject(body)
  const unused = sortUnknownFields(body, Object.keys(completionRequestSchema.shape))
  const given = parseBody(completionRequestSchema, body)
  const includeUsage = toIncludeUsage(given)
  const choices = given.n ?? 1
  const bestOf = given.best_of ?? choices
  const stream = given.stream ?? false
  if (bestOf < choices) {
    throw fieldInvalid(['best_of'], `\`best_of\` must be at least \`n\`. Given: ${bestOf} and ${choices}`)
  }
  if (stream && bestOf > choices) {
    throw fieldInvalid(['best_of'], '`best_of` greater than `n` is not supported when streaming')
  }
  const prompts = toPrompts(given.prompt)
  checkSequenceCount(prompts.length, bestOf, 'n')
  const echoPrompt = given.echo ?? false
  const common = toCommonRequest(given)
  return {
    api: 'openai',
    route: '/v1/completions',
    stream,
    adapter: toOpenAiAdapter(given),
    ignored: [...unused, ...common.ignored],
    request: {
      ...common.request,
      prompts,
      choices,
      bestOf,
      echoPrompt,
      promptLogprobs: echoPrompt && given.logprobs != null,
      alternatives: given.logprobs ?? 0,
      maxNewTokens: given.max_tokens ?? DEFAULT_COMPLETION_TOKENS,
    },
    reply: { includeUsage, logprobs: given.logprobs != null },
  }
}

interface CommonReading {
  request: Pick<GenerateRequest, 'sampling' | 'stop' | 'keepStopText' | 'ignoreEos' | 'format'>
  ignored: string[]
}

function toCommonRequest(given: ChatRequest | CompletionRequest): CommonReading {
  const { format, ignored } = toOutputFormat(given.response_format, ['response_format'])
  return {
    ignored: [...sortStreamOptions(given.stream_options), ...ignored],
    request: {
      sampling: toOpenAiSampling(given),
      stop: toStop(given.stop),
      keepStopText: false,
      ignoreEos: given.ignore_eos_token ?? false,
      ...(format === undefined ? {} : { format }),
    },
  }
}

function toPrompts(prompt: CompletionRequest['prompt']): PromptInput[] {
  if (typeof prompt === 'string') {
    return [{ kind: 'text', text: prompt }]
  }
  if (prompt.every((part) => typeof part === 'number')) {
    return [{ kind: 'tokens', tokens: prompt }]
  }
  return prompt.map((part) =>
    typeof part === 'string' ? { kind: 'text', text: part } : { kind: 'tokens', tokens: [part].flat() },
  )
}
