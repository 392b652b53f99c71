/** Bodies of the routes that generate nothing: embeddings in LoRAX's and OpenAI's shape, and tokenize. */

import { z } from 'zod'
import { adapterIdSchema, mergedAdaptersSchema, tokenSchema } from './adapter-fields.ts'
import { checkObject, fieldInvalid, fieldUnknown, parseBody } from './body-parse.ts'
import { couldNameAdapter, sortFields } from './field-rules.ts'
import type { AdapterFields } from './generate-request.ts'
import { toAdapterFields } from './lorax-request.ts'
import { tokenIdsSchema } from './token-ids.ts'

/** Most inputs of one request; OpenAI's own cap. */
const MAX_INPUTS = 2048

const adapterParametersSchema = z.looseObject({
  adapter_id: adapterIdSchema.nullish(),
  adapter_source: z.string().max(64).nullish(),
  merged_adapters: mergedAdaptersSchema.nullish(),
  api_token: tokenSchema.nullish(),
})
const ADAPTER_PARAMETERS = Object.keys(adapterParametersSchema.shape)
const PARAMETER_RULES = { known: ADAPTER_PARAMETERS, adapterField: 'adapter_id' }

export const loraxEmbedSchema = z.looseObject({
  inputs: z.string(),
  parameters: adapterParametersSchema.nullish(),
})

export const openAiEmbedSchema = z.looseObject({
  model: adapterIdSchema,
  input: z.union(
    [
      // Long lists first: each branch that fails reports all values.
      tokenIdsSchema,
      z.string().min(1),
      z.array(z.string().min(1)).min(1).max(MAX_INPUTS),
      z.array(tokenIdsSchema).min(1).max(MAX_INPUTS),
    ],
    {
      error: `expected a string, up to ${MAX_INPUTS} strings, token ids or arrays of token ids, none of them empty`,
    },
  ),
  encoding_format: z.enum(['float', 'base64']).nullish(),
  dimensions: z.int().min(1).nullish(),
  adapter_source: z.string().max(64).nullish(),
  api_token: tokenSchema.nullish(),
  /** LoRAX's place for the adapter on this route. */
  parameters: adapterParametersSchema.nullish(),
  user: z.string().nullish(),
})

/** Characters; the worst of that length take a node's tokenizer about 5 s, and the reply has 40 MB. */
const MAX_TOKENIZE_LENGTH = 262_144

export const tokenizeSchema = z.looseObject({
  inputs: z.string().max(MAX_TOKENIZE_LENGTH),
  add_special_tokens: z.boolean().nullish(),
})

export type EmbedRoute = '/embed' | '/v1/embeddings'

export interface ParsedEmbed {
  route: EmbedRoute
  adapter: AdapterFields
  inputs: (string | number[])[]
  /** Only `/v1/embeddings`. */
  encoding: 'float' | 'base64'
  /** Keep the first so many numbers, then normalise again. */
  dimensions?: number
  ignored: string[]
}

export function parseEmbedRequest(body: unknown, route: EmbedRoute): ParsedEmbed {
  return route === '/embed' ? parseLoraxEmbed(body) : parseOpenAiEmbed(body)
}

function parseLoraxEmbed(body: unknown): ParsedEmbed {
  const given = parseBody(loraxEmbedSchema, body)
  if (given.inputs === '') {
    throw fieldInvalid(['inputs'], '`inputs` cannot be empty')
  }
  const ignored = unknownFields(given, ['inputs', 'parameters'])
  sortFields(given.parameters ?? {}, ['parameters'], PARAMETER_RULES)
  const adapter = toAdapterFields(given.parameters ?? {})
  return { route: '/embed', adapter, inputs: [given.inputs], encoding: 'float', ignored }
}

function parseOpenAiEmbed(body: unknown): ParsedEmbed {
  checkObject(body)
  sortFields(body, [], { known: Object.keys(openAiEmbedSchema.shape), adapterField: 'model' })
  const given = parseBody(openAiEmbedSchema, body)
  sortFields(given.parameters ?? {}, ['parameters'], PARAMETER_RULES)
  const named = toAdapterFields(given.parameters ?? {})
  if (named.adapterId !== undefined && given.model !== '' && given.model !== named.adapterId) {
    throw fieldInvalid(['parameters', 'adapter_id'], '`model` and `parameters.adapter_id` name different adapters')
  }
  return {
    route: '/v1/embeddings',
    adapter: {
      ...named,
      model: named.adapterId ?? given.model,
      ...(given.adapter_source ? { adapterSource: given.adapter_source } : {}),
      ...(given.api_token ? { apiToken: given.api_token } : {}),
    },
    inputs: toInputs(given.input),
    encoding: given.encoding_format ?? 'float',
    ignored: given.user == null ? [] : ['user'],
    ...(given.dimensions == null ? {} : { dimensions: given.dimensions }),
  }
}

export interface ParsedTokenize {
  inputs: string
  addSpecialTokens: boolean
  ignored: string[]
}

export function parseTokenizeRequest(body: unknown): ParsedTokenize {
  const given = parseBody(tokenizeSchema, body)
  const ignored = unknownFields(given, ['inputs', 'add_special_tokens'])
  return { inputs: given.inputs, addSpecialTokens: given.add_special_tokens ?? true, ignored }
}

function unknownFields(given: object, known: readonly string[]): string[] {
  const unknown = Object.keys(given).filter((name) => !known.includes(name))
  const misplaced = unknown.find(couldNameAdapter)
  if (misplaced !== undefined) {
    throw fieldUnknown([misplaced], ADAPTER_PARAMETERS, 'parameters.', 'adapter_id')
  }
  return unknown
}

function toInputs(input: z.infer<typeof openAiEmbedSchema>['input']): (string | number[])[] {
  if (typeof input === 'string') {
    return [input]
  }
  return input.every((part) => typeof part === 'number')
    ? [input]
    : input.map((part) => (typeof part === 'number' ? [part] : part))
}
