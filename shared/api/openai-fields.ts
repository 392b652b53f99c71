/** What chat and plain completions share on `/v1`: sampling, stops, streams, adapters; and which fields are not served. */

import { z } from 'zod'
import { adapterIdSchema, mergedAdaptersSchema, tokenSchema, toMergeFields } from './adapter-fields.ts'
import { fieldInvalid } from './body-parse.ts'
import { sortFields } from './field-rules.ts'
import { type AdapterFields, foldSeed, MAX_SEQUENCES_PER_REQUEST, type SamplingFields } from './generate-request.ts'
import { logitBiasSchema, toLogitBias } from './logit-bias.ts'
import { responseFormatSchema } from './output-format.ts'

const penalty = z.number().min(-2).max(2).nullish()

/** OpenAI's fields of both routes, then LoRAX's and Ringlet's extensions. */
export const commonFields = {
  model: adapterIdSchema,
  stream: z.boolean().nullish(),
  stream_options: z
    .looseObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.boolean().nullish() })
    .nullish(),
  n: z.int().min(1).max(MAX_SEQUENCES_PER_REQUEST).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  frequency_penalty: penalty,
  presence_penalty: penalty,
  logit_bias: logitBiasSchema.nullish(),
  seed: z.number().refine(Number.isInteger, 'expected a whole number').nullish(),
  stop: z
    .union([z.string().min(1).max(1024), z.array(z.string().min(1).max(1024)).max(4)], {
      error: 'expected a string or up to 4 strings, none of them empty',
    })
    .nullish(),

  adapter_source: z.string().max(64).nullish(),
  api_token: tokenSchema.nullish(),
  merged_adapters: mergedAdaptersSchema.nullish(),
  response_format: responseFormatSchema.nullish(),
  top_k: z.int().min(1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  typical_p: z.number().gt(0).max(1).nullish(),
  repetition_penalty: z.number().gt(0).nullish(),
  ignore_eos_token: z.boolean().nullish(),
}
const commonSchema = z.object(commonFields)
type Common = z.infer<typeof commonSchema>

/** Bookkeeping for OpenAI's own service: no influence on the text. */
const IGNORED = [
  'user',
  'store',
  'metadata',
  'service_tier',
  'safety_identifier',
  'prompt_cache_key',
  'prompt_cache_retention',
  'prompt_cache_options',
  'prediction',
] as const

/** They would change the answer, so taking them without effect would lie. */
const REFUSED = [
  'audio',
  'functions',
  'function_call',
  'moderation',
  'reasoning_effort',
  'suffix',
  'verbosity',
  'web_search_options',
] as const

/** Refuses what would change the answer, tells what would not; `known` are the schema's own fields. */
export function sortUnknownFields(body: Record<string, unknown>, known: readonly string[]): string[] {
  const { modalities } = body
  const textAlone = Array.isArray(modalities) && modalities.every((modality) => modality === 'text')
  const served = textAlone ? [...IGNORED, 'modalities'] : IGNORED
  const refused = textAlone ? REFUSED : [...REFUSED, 'modalities']
  return sortFields(body, [], { known, ignored: served, refused, adapterField: 'model' })
}

/** Of `stream_options`: padding against a listener on the wire is OpenAI's own measure. */
export function sortStreamOptions(options: Common['stream_options']): string[] {
  return sortFields(options ?? {}, ['stream_options'], { known: ['include_usage'], ignored: ['include_obfuscation'] })
}

export function toOpenAiAdapter(given: Common): AdapterFields {
  return {
    model: given.model,
    ...(given.adapter_source ? { adapterSource: given.adapter_source } : {}),
    ...(given.api_token ? { apiToken: given.api_token } : {}),
    ...(given.merged_adapters == null ? {} : { merge: toMergeFields(given.merged_adapters, ['merged_adapters']) }),
  }
}

/** OpenAI samples unless the temperature is 0; so does `top_p` 0, which leaves only the likeliest token. */
export function toOpenAiSampling(given: Common): SamplingFields {
  const temperature = given.temperature ?? 1
  const topP = given.top_p ?? 1
  const minP = given.min_p ?? 0
  const typicalP = given.typical_p ?? 1
  return {
    doSample: temperature !== 0 && topP !== 0,
    temperature,
    watermark: false,
    ...(given.top_k == null ? {} : { topK: given.top_k }),
    ...(topP > 0 && topP < 1 ? { topP } : {}),
    ...(minP > 0 ? { minP } : {}),
    ...(typicalP < 1 ? { typicalP } : {}),
    ...(given.repetition_penalty == null ? {} : { repetitionPenalty: given.repetition_penalty }),
    ...(given.frequency_penalty ? { frequencyPenalty: given.frequency_penalty } : {}),
    ...(given.presence_penalty ? { presencePenalty: given.presence_penalty } : {}),
    ...(given.logit_bias == null ? {} : { logitBias: toLogitBias(given.logit_bias, ['logit_bias']) }),
    ...(given.seed == null ? {} : { seed: foldSeed(given.seed) }),
  }
}

export function toStop(given: Common['stop']): string[] {
  return given == null ? [] : typeof given === 'string' ? [given] : given
}

/** As OpenAI does, options for a stream that is none are an error. */
export function toIncludeUsage(given: Common): boolean {
  if (given.stream_options != null && given.stream !== true) {
    throw fieldInvalid(['stream_options'], '`stream_options` is only allowed when `stream` is true')
  }
  return given.stream_options?.include_usage ?? false
}

export function checkSequenceCount(prompts: number, bestOf: number, field: string): void {
  if (prompts * bestOf > MAX_SEQUENCES_PER_REQUEST) {
    const given = `${prompts} prompts with ${bestOf} choices each`
    throw fieldInvalid([field], `a request starts up to ${MAX_SEQUENCES_PER_REQUEST} sequences. Given: ${given}`)
  }
}
