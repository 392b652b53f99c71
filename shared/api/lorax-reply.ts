/** What LoRAX's routes answer: reply, details, tokens, stream events. */

import { z } from 'zod'

/** The first prompt token has no logprob. */
export const loraxPrefillTokenSchema = z.object({ id: z.int(), text: z.string(), logprob: z.number().nullable() })
/** -9999 where it is minus infinity. */
const logprob = z.number()
export const loraxAlternativeSchema = z.object({ id: z.int(), text: z.string(), logprob })
export const loraxTokenSchema = z.object({
  id: z.int(),
  text: z.string(),
  logprob,
  special: z.boolean(),
  alternative_tokens: z.array(loraxAlternativeSchema).optional(),
  /** LoRAX: an accepted speculative token. */
  skipped: z.boolean(),
})
export type LoraxToken = z.infer<typeof loraxTokenSchema>

export const loraxFinishSchema = z.enum(['length', 'eos_token', 'stop_sequence'])
export type LoraxFinish = z.infer<typeof loraxFinishSchema>

const sequenceFields = {
  finish_reason: loraxFinishSchema,
  generated_tokens: z.int(),
  /** Only when sampling. */
  seed: z.int().nullable(),
  prefill: z.array(loraxPrefillTokenSchema),
  tokens: z.array(loraxTokenSchema),
}

export const loraxDetailsSchema = z.object({
  ...sequenceFields,
  prompt_tokens: z.int(),
  skipped_tokens: z.int(),
  best_of_sequences: z.array(z.object({ generated_text: z.string(), ...sequenceFields })).optional(),
})
export type LoraxDetails = z.infer<typeof loraxDetailsSchema>

export const loraxReplySchema = z.object({ generated_text: z.string(), details: loraxDetailsSchema.optional() })
export type LoraxReply = z.infer<typeof loraxReplySchema>

export const loraxStreamDetailsSchema = z.object({
  finish_reason: loraxFinishSchema,
  prompt_tokens: z.int(),
  generated_tokens: z.int(),
  seed: z.int().nullable(),
})

/** One token; the last event has `generated_text`, and `details` if asked for. */
export const loraxEventSchema = z.object({
  token: loraxTokenSchema,
  generated_text: z.string().nullable(),
  details: loraxStreamDetailsSchema.nullable(),
})
export type LoraxEvent = z.infer<typeof loraxEventSchema>

export const loraxErrorSchema = z.object({
  error: z.string(),
  error_type: z.string(),
  code: z.string(),
  param: z.string().optional(),
})

export const loraxEmbedReplySchema = z.object({ embeddings: z.array(z.number()) })
export const loraxTokenizeReplySchema = z.array(
  z.object({ id: z.int(), text: z.string(), start: z.int(), stop: z.int() }),
)
