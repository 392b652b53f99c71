/**
 * LoRAX's generate body: its fields, its rules in its order, its messages word for word
 * (https://github.com/predibase/lorax, router/src/validation.rs). Unknown fields in `parameters` are refused here, which
 * LoRAX ignores; so is what could name an adapter beside `parameters`.
 */

import { z } from 'zod'
import { adapterIdSchema, mergedAdaptersSchema, tokenSchema, toMergeFields } from './adapter-fields.ts'
import { fieldInvalid, fieldUnknown, parseBody } from './body-parse.ts'
import { couldNameAdapter, sortFields } from './field-rules.ts'
import {
  type AdapterFields,
  foldSeed,
  type GenerateRequest,
  type LoraxRoute,
  type OutputFormat,
  type ParsedRequest,
  type SamplingFields,
} from './generate-request.ts'
import { type LogitBias, logitBiasSchema, toLogitBias } from './logit-bias.ts'
import { responseFormatSchema, toOutputFormat } from './output-format.ts'

/** LoRAX's launcher defaults; an operator may raise them. */
export interface LoraxLimits {
  maxBestOf: number
  maxStopSequences: number
}
export const DEFAULT_LORAX_LIMITS: LoraxLimits = { maxBestOf: 2, maxStopSequences: 4 }

/** LoRAX has no cap; each costs every token of the batch time, and a reply of whole vocabularies would fill a node. */
const MAX_ALTERNATIVES = 64

const wholeNumber = z.number().refine(Number.isInteger, 'expected a whole number')

export const loraxParametersSchema = z.looseObject({
  adapter_id: adapterIdSchema.nullish(),
  adapter_source: z.string().max(64).nullish(),
  merged_adapters: mergedAdaptersSchema.nullish(),
  api_token: tokenSchema.nullish(),
  best_of: wholeNumber.nullish(),
  temperature: z.number().nullish(),
  repetition_penalty: z.number().nullish(),
  frequency_penalty: z.number().nullish(),
  presence_penalty: z.number().nullish(),
  top_k: wholeNumber.nullish(),
  top_p: z.number().nullish(),
  typical_p: z.number().nullish(),
  do_sample: z.boolean().nullish(),
  max_new_tokens: wholeNumber.nullish(),
  ignore_eos_token: z.boolean().nullish(),
  return_full_text: z.boolean().nullish(),
  stop: z.array(z.string().min(1).max(1024)).nullish(),
  truncate: wholeNumber.nullish(),
  watermark: z.boolean().nullish(),
  details: z.boolean().nullish(),
  decoder_input_details: z.boolean().nullish(),
  return_k_alternatives: wholeNumber.nullish(),
  /** `inputs` becomes one user message of the base model's chat template. */
  apply_chat_template: z.boolean().nullish(),
  /** u64 on LoRAX's wire. */
  seed: wholeNumber.nullish(),
  response_format: responseFormatSchema.nullish(),
  // Ringlet's own
  min_p: z.number().nullish(),
  logit_bias: logitBiasSchema.nullish(),
})
export type LoraxParameters = z.infer<typeof loraxParametersSchema>
const PARAMETER_NAMES = Object.keys(loraxParametersSchema.shape)

export const loraxRequestSchema = z.looseObject({
  inputs: z.string(),
  parameters: loraxParametersSchema.nullish(),
  /** On `/` and `/invocations` only. */
  stream: z.boolean().nullish(),
})
export type LoraxRequest = z.infer<typeof loraxRequestSchema>

/** What LoRAX's replies need besides the text. */
export interface LoraxReplyOptions {
  details: boolean
  decoderInputDetails: boolean
}

export interface ParsedLorax extends ParsedRequest {
  api: 'lorax'
  route: LoraxRoute
  reply: LoraxReplyOptions
}

export function parseLoraxRequest(body: unknown, route: LoraxRoute, limits = DEFAULT_LORAX_LIMITS): ParsedLorax {
  const given = parseBody(loraxRequestSchema, body)
  const compat = route === '/' || route === '/invocations'
  const known = compat ? ['inputs', 'parameters', 'stream'] : ['inputs', 'parameters']
  const ignored = Object.keys(given).filter((name) => !known.includes(name))
  for (const name of ignored) {
    if (couldNameAdapter(name) || PARAMETER_NAMES.includes(name)) {
      throw fieldUnknown([name], PARAMETER_NAMES, 'parameters.', 'adapter_id')
    }
  }
  const parameters = given.parameters ?? {}
  sortFields(parameters, ['parameters'], { known: PARAMETER_NAMES, adapterField: 'adapter_id' })
  const stream = route === '/generate_stream' || (compat && given.stream === true)
  const adapter = toAdapterFields(parameters)
  const reading = toOutputFormat(parameters.response_format, ['parameters', 'response_format'])
  const request = toGenerateRequest(given.inputs, parameters, { stream, limits, format: reading.format })
  return {
    api: 'lorax',
    route,
    stream,
    adapter,
    request,
    ignored: [...ignored, ...reading.ignored],
    reply: {
      details: parameters.details ?? false,
      decoderInputDetails: parameters.decoder_input_details ?? false,
    },
  }
}

/** An empty or absent `adapter_id` is the base model. */
export function toAdapterFields(
  given: Pick<LoraxParameters, 'adapter_id' | 'adapter_source' | 'merged_adapters' | 'api_token'>,
): AdapterFields {
  const fields: AdapterFields = {}
  if (given.merged_adapters != null) {
    if (given.adapter_id != null) {
      throw invalid('adapter_id', 'at most one of `adapter_id` or `adapters` may be provided')
    }
    fields.merge = toMergeFields(given.merged_adapters, ['parameters', 'merged_adapters'])
  }
  if (given.adapter_id) {
    fields.adapterId = given.adapter_id
  }
  if (given.adapter_source) {
    fields.adapterSource = given.adapter_source
  }
  if (given.api_token) {
    fields.apiToken = given.api_token
  }
  return fields
}

interface RequestContext {
  stream: boolean
  limits: LoraxLimits
  format: OutputFormat | undefined
}

function toGenerateRequest(
  inputs: string,
  given: LoraxParameters,
  { stream, limits, format }: RequestContext,
): GenerateRequest {
  const bestOf = given.best_of ?? 1
  checkBestOf(given, bestOf, stream, limits)
  const sampling = toSampling(given, bestOf)
  if (given.max_new_tokens != null && given.max_new_tokens <= 0) {
    throw invalid('max_new_tokens', '`max_new_tokens` must be strictly positive')
  }
  const stop = given.stop ?? []
  if (stop.length > limits.maxStopSequences) {
    throw invalid('stop', `\`stop\` supports up to ${limits.maxStopSequences} stop sequences. Given: ${stop.length}`)
  }
  if (bestOf > 1 && given.seed != null) {
    throw invalid('seed', '`seed` must not be set when `best_of` > 1')
  }
  if (inputs === '') {
    throw fieldInvalid(['inputs'], '`inputs` cannot be empty')
  }
  if (given.decoder_input_details && stream) {
    throw invalid('decoder_input_details', '`decoder_input_details` == true is not supported when streaming tokens')
  }
  return {
    prompts: [
      given.apply_chat_template
        ? { kind: 'chat', messages: [{ role: 'user', content: inputs }], templateVariables: {} }
        : { kind: 'text', text: inputs },
    ],
    choices: 1,
    bestOf,
    sampling,
    stop,
    keepStopText: true,
    ignoreEos: given.ignore_eos_token ?? false,
    echoPrompt: given.return_full_text ?? false,
    promptLogprobs: given.decoder_input_details ?? false,
    alternatives: given.return_k_alternatives ?? 0,
    ...(given.max_new_tokens == null ? {} : { maxNewTokens: given.max_new_tokens }),
    ...(given.truncate == null ? {} : { truncate: given.truncate }),
    ...(format === undefined ? {} : { format }),
  }
}

function checkBestOf(given: LoraxParameters, bestOf: number, stream: boolean, limits: LoraxLimits): void {
  if (stream && bestOf !== 1) {
    throw invalid('best_of', '`best_of` != 1 is not supported when streaming tokens')
  }
  if (bestOf !== 1 && limits.maxBestOf === 1) {
    throw invalid('best_of', '`best_of` != 1 is not allowed for this endpoint')
  }
  if (given.best_of != null && (bestOf <= 0 || bestOf > limits.maxBestOf)) {
    throw invalid('best_of', `\`best_of\` must be > 0 and <= ${limits.maxBestOf}. Given: ${bestOf}`)
  }
}

/** Sampling is on when asked for, and when a parameter only makes sense with it. Temperature 0 is greedy whatever else is said. */
function toSampling(given: LoraxParameters, bestOf: number): SamplingFields {
  const temperature = given.temperature ?? 1
  const topP = given.top_p ?? 1
  const typicalP = given.typical_p ?? undefined
  const minP = given.min_p ?? 0
  const implied = temperature !== 1 || given.top_k != null || topP < 1 || typicalP !== undefined || minP > 0
  const doSample = temperature !== 0 && (given.do_sample === true || implied)
  check(bestOf === 1 || doSample, 'best_of', 'you must use sampling when `best_of` is > 1')
  check(temperature >= 0, 'temperature', '`temperature` must be non-negative')
  check((given.repetition_penalty ?? 1) > 0, 'repetition_penalty', '`repetition_penalty` must be strictly positive')
  for (const name of ['frequency_penalty', 'presence_penalty'] as const) {
    check(Math.abs(given[name] ?? 0) <= 2, name, `\`${name}\` must be >= -2.0 and <= 2.0`)
  }
  check(topP > 0 && topP <= 1, 'top_p', '`top_p` must be > 0.0 and < 1.0')
  check(typicalP === undefined || (typicalP > 0 && typicalP < 1), 'typical_p', '`typical_p` must be > 0.0 and < 1.0')
  check((given.top_k ?? 1) > 0, 'top_k', '`top_k` must be strictly positive')
  check(minP >= 0 && minP <= 1, 'min_p', '`min_p` must be >= 0.0 and <= 1.0')
  check(
    (given.return_k_alternatives ?? 1) > 0,
    'return_k_alternatives',
    '`return_k_alternatives` must be strictly positive',
  )
  check(
    (given.return_k_alternatives ?? 1) <= MAX_ALTERNATIVES,
    'return_k_alternatives',
    `\`return_k_alternatives\` must be <= ${MAX_ALTERNATIVES}. Given: ${given.return_k_alternatives}`,
  )
  check((given.seed ?? 0) >= 0, 'seed', '`seed` must be non-negative')
  const bias: LogitBias | undefined = given.logit_bias ?? undefined
  return {
    doSample,
    temperature,
    watermark: given.watermark ?? false,
    ...(given.top_k == null ? {} : { topK: given.top_k }),
    ...(topP < 1 ? { topP } : {}),
    ...(typicalP === undefined ? {} : { typicalP }),
    ...(minP > 0 ? { minP } : {}),
    ...(given.repetition_penalty == null ? {} : { repetitionPenalty: given.repetition_penalty }),
    ...(given.frequency_penalty == null ? {} : { frequencyPenalty: given.frequency_penalty }),
    ...(given.presence_penalty == null ? {} : { presencePenalty: given.presence_penalty }),
    ...(bias === undefined ? {} : { logitBias: toLogitBias(bias, ['parameters', 'logit_bias']) }),
    ...(given.seed == null ? {} : { seed: foldSeed(given.seed) }),
  }
}

function check(holds: boolean, field: keyof LoraxParameters & string, message: string): void {
  if (!holds) {
    throw invalid(field, message)
  }
}

function invalid(field: string, message: string) {
  return fieldInvalid(['parameters', field], message)
}
