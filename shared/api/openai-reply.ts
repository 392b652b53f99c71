/** What `/v1` answers: completions, chunks, models, embeddings, in OpenAI's shapes. */

import { z } from 'zod'

export const usageSchema = z.object({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
})
export type Usage = z.infer<typeof usageSchema>

export const finishReasonSchema = z.enum(['stop', 'length', 'tool_calls'])
export type OpenAiFinish = z.infer<typeof finishReasonSchema>

const topLogprobSchema = z.object({ token: z.string(), logprob: z.number(), bytes: z.array(z.int()).nullable() })
export const chatLogprobSchema = topLogprobSchema.extend({ top_logprobs: z.array(topLogprobSchema) })
export type ChatLogprob = z.infer<typeof chatLogprobSchema>
const chatLogprobsSchema = z.object({ content: z.array(chatLogprobSchema).nullable(), refusal: z.null() }).nullable()

export const toolCallSchema = z.object({
  id: z.string(),
  type: z.literal('function'),
  function: z.object({ name: z.string(), arguments: z.string() }),
})

export const chatCompletionSchema = z.object({
  id: z.string(),
  object: z.literal('chat.completion'),
  created: z.int(),
  model: z.string(),
  system_fingerprint: z.string(),
  choices: z.array(
    z.object({
      index: z.int(),
      message: z.object({
        role: z.literal('assistant'),
        content: z.string().nullable(),
        refusal: z.null(),
        tool_calls: z.array(toolCallSchema).optional(),
      }),
      logprobs: chatLogprobsSchema,
      finish_reason: finishReasonSchema,
    }),
  ),
  usage: usageSchema,
})
export type ChatCompletion = z.infer<typeof chatCompletionSchema>

export const toolCallDeltaSchema = z.object({
  index: z.int(),
  id: z.string().optional(),
  type: z.literal('function').optional(),
  function: z.object({ name: z.string().optional(), arguments: z.string().optional() }),
})
export type ToolCallDelta = z.infer<typeof toolCallDeltaSchema>

export const chatDeltaSchema = z.object({
  role: z.literal('assistant').optional(),
  content: z.string().nullable().optional(),
  tool_calls: z.array(toolCallDeltaSchema).optional(),
})
export type ChatDelta = z.infer<typeof chatDeltaSchema>

export const chatChunkSchema = z.object({
  id: z.string(),
  object: z.literal('chat.completion.chunk'),
  created: z.int(),
  model: z.string(),
  system_fingerprint: z.string(),
  choices: z.array(
    z.object({
      index: z.int(),
      delta: chatDeltaSchema,
      logprobs: chatLogprobsSchema,
      finish_reason: finishReasonSchema.nullable(),
    }),
  ),
  /** With `include_usage`: null on every chunk but the last, which has no choices. */
  usage: usageSchema.nullable().optional(),
})
export type ChatChunk = z.infer<typeof chatChunkSchema>

/** Parallel lists, one entry a token; the first prompt token has no logprob. */
export const completionLogprobsSchema = z.object({
  tokens: z.array(z.string()),
  token_logprobs: z.array(z.number().nullable()),
  top_logprobs: z.array(z.record(z.string(), z.number()).nullable()).nullable(),
  /** UTF-16 units into the choice's text. */
  text_offset: z.array(z.int()),
})
export type CompletionLogprobs = z.infer<typeof completionLogprobsSchema>

const completionChoice = {
  index: z.int(),
  text: z.string(),
  logprobs: completionLogprobsSchema.nullable(),
}

export const completionSchema = z.object({
  id: z.string(),
  object: z.literal('text_completion'),
  created: z.int(),
  model: z.string(),
  system_fingerprint: z.string(),
  choices: z.array(z.object({ ...completionChoice, finish_reason: finishReasonSchema })),
  usage: usageSchema,
})
export type Completion = z.infer<typeof completionSchema>

export const completionChunkSchema = z.object({
  ...completionSchema.shape,
  choices: z.array(z.object({ ...completionChoice, finish_reason: finishReasonSchema.nullable() })),
  usage: usageSchema.nullable().optional(),
})
export type CompletionChunk = z.infer<typeof completionChunkSchema>

export const embeddingsSchema = z.object({
  object: z.literal('list'),
  data: z.array(
    z.object({
      object: z.literal('embedding'),
      index: z.int(),
      /** Numbers, or base64 of little-endian f32. */
      embedding: z.union([z.array(z.number()), z.string()]),
    }),
  ),
  model: z.string(),
  usage: z.object({ prompt_tokens: z.int(), total_tokens: z.int() }),
})
export type Embeddings = z.infer<typeof embeddingsSchema>

export const modelSchema = z.object({
  id: z.string(),
  object: z.literal('model'),
  /** Unix seconds. */
  created: z.int(),
  owned_by: z.string(),
  /** The base's own name, or the adapter behind the name. */
  root: z.string(),
  /** The base under an adapter. */
  parent: z.string().nullable(),
  /** SHA-256 of the checkpoint, or of the adapter's content; null while no node holds it. */
  digest: z.string().nullable(),
  /** Prompt and generated tokens together; null while no node is up. */
  max_model_len: z.int().nullable(),
})
export type ModelCard = z.infer<typeof modelSchema>
export const modelListSchema = z.object({ object: z.literal('list'), data: z.array(modelSchema) })

export const openAiErrorSchema = z.object({
  error: z.object({ message: z.string(), type: z.string(), code: z.string(), param: z.string().nullable() }),
})
