/** The endpoint's routes as its OpenAPI document tells them: what each takes, answers and is for. */

import { z } from 'zod'
import { loraxEmbedSchema, openAiEmbedSchema, tokenizeSchema } from './embed-request.ts'
import {
  loraxEmbedReplySchema,
  loraxErrorSchema,
  loraxEventSchema,
  loraxReplySchema,
  loraxTokenizeReplySchema,
} from './lorax-reply.ts'
import { loraxRequestSchema } from './lorax-request.ts'
import {
  chatChunkSchema,
  chatCompletionSchema,
  completionChunkSchema,
  completionSchema,
  embeddingsSchema,
  modelListSchema,
  modelSchema,
  openAiErrorSchema,
} from './openai-reply.ts'
import { chatRequestSchema, completionRequestSchema } from './openai-request.ts'

/** By the names under which the document refers to them. */
export const REQUEST_SCHEMAS = {
  LoraxGenerateRequest: loraxRequestSchema,
  LoraxEmbedRequest: loraxEmbedSchema,
  TokenizeRequest: tokenizeSchema,
  ChatRequest: chatRequestSchema,
  CompletionRequest: completionRequestSchema,
  EmbeddingsRequest: openAiEmbedSchema,
} as const

export const REPLY_SCHEMAS = {
  LoraxReply: loraxReplySchema,
  LoraxReplies: z.array(loraxReplySchema),
  LoraxEvent: loraxEventSchema,
  LoraxEmbeddings: loraxEmbedReplySchema,
  LoraxTokens: loraxTokenizeReplySchema,
  LoraxInfo: z.looseObject({ model_id: z.string(), max_total_tokens: z.int(), version: z.string() }),
  LoraxError: loraxErrorSchema,
  ChatCompletion: chatCompletionSchema,
  ChatChunk: chatChunkSchema,
  Completion: completionSchema,
  CompletionChunk: completionChunkSchema,
  Embeddings: embeddingsSchema,
  Model: modelSchema,
  ModelList: modelListSchema,
  OpenAiError: openAiErrorSchema,
} as const

export interface DocumentedRoute {
  /** `{name}` for what stands in the path. */
  path: string
  method: 'get' | 'post'
  summary: string
  request?: keyof typeof REQUEST_SCHEMAS
  /** Absent: nothing, or what `replyType` says. */
  reply?: keyof typeof REPLY_SCHEMAS
  /** One event of the stream, where the route can stream. */
  event?: keyof typeof REPLY_SCHEMAS
  /** Of a reply that is no JSON. */
  replyType?: string
  /** Needs no token. */
  open?: true
  example?: object
}

const inputs = 'My name is Anna. Please send 3 red lamps to Berlin.'
const messages = [{ role: 'user', content: inputs }]
const HEALTH = 'Is the endpoint up? 200 and nothing, or 503; needs no token'
const NO_CLASSIFIER = 'Classify tokens (LoRAX): always 501 `not_supported`, the base is no classifier'

export const DOCUMENTED_ROUTES: readonly DocumentedRoute[] = [
  {
    path: '/generate',
    method: 'post',
    summary: 'Generate (LoRAX)',
    request: 'LoraxGenerateRequest',
    reply: 'LoraxReply',
    example: { inputs, parameters: { adapter_id: 'orders-json', apply_chat_template: true, max_new_tokens: 64 } },
  },
  {
    path: '/generate_stream',
    method: 'post',
    summary: 'Generate, one event a token (LoRAX)',
    request: 'LoraxGenerateRequest',
    event: 'LoraxEvent',
    example: { inputs, parameters: { adapter_id: 'orders-json', apply_chat_template: true, max_new_tokens: 64 } },
  },
  {
    path: '/',
    method: 'post',
    summary: 'Generate; an array of one reply, or a stream with `stream: true` (LoRAX, what lorax-client calls)',
    request: 'LoraxGenerateRequest',
    reply: 'LoraxReplies',
    event: 'LoraxEvent',
    example: { inputs, stream: false, parameters: { apply_chat_template: true, max_new_tokens: 64 } },
  },
  {
    path: '/invocations',
    method: 'post',
    summary: 'As `/` (SageMaker)',
    request: 'LoraxGenerateRequest',
    reply: 'LoraxReplies',
    event: 'LoraxEvent',
    example: { inputs, parameters: { apply_chat_template: true, max_new_tokens: 64 } },
  },
  {
    path: '/v1/chat/completions',
    method: 'post',
    summary: 'Chat (OpenAI); `model` names the base model or an adapter',
    request: 'ChatRequest',
    reply: 'ChatCompletion',
    event: 'ChatChunk',
    example: { model: 'orders-json', messages, temperature: 0, max_tokens: 64, stream: true },
  },
  {
    path: '/v1/completions',
    method: 'post',
    summary: 'Complete (OpenAI)',
    request: 'CompletionRequest',
    reply: 'Completion',
    event: 'CompletionChunk',
    example: { model: 'pirate', prompt: 'Dear Anna, thank you for', max_tokens: 32, temperature: 0 },
  },
  {
    path: '/v1/embeddings',
    method: 'post',
    summary: 'Embed (OpenAI)',
    request: 'EmbeddingsRequest',
    reply: 'Embeddings',
    example: { model: 'orders-json', input: ['one', 'two'] },
  },
  {
    path: '/v1/models',
    method: 'get',
    summary: 'The base model and the adapters that this token may name (OpenAI)',
    reply: 'ModelList',
  },
  {
    path: '/v1/models/{model}',
    method: 'get',
    summary: 'One of them, by its name (OpenAI); asks the adapter’s home as a request would',
    reply: 'Model',
  },
  {
    path: '/embed',
    method: 'post',
    summary: 'Embed (LoRAX)',
    request: 'LoraxEmbedRequest',
    reply: 'LoraxEmbeddings',
    example: { inputs, parameters: { adapter_id: 'orders-json' } },
  },
  {
    path: '/tokenize',
    method: 'post',
    summary: 'Tokens of a text (LoRAX)',
    request: 'TokenizeRequest',
    reply: 'LoraxTokens',
    example: { inputs },
  },
  { path: '/classify', method: 'post', summary: NO_CLASSIFIER },
  { path: '/classify_batch', method: 'post', summary: NO_CLASSIFIER },
  { path: '/info', method: 'get', summary: 'What serves here (LoRAX)', reply: 'LoraxInfo' },
  { path: '/', method: 'get', summary: HEALTH, open: true },
  { path: '/health', method: 'get', summary: HEALTH, open: true },
  { path: '/ping', method: 'get', summary: `${HEALTH} (SageMaker)`, open: true },
  { path: '/startup', method: 'get', summary: 'Generates one token with the base model: 200 and nothing when it can' },
  {
    path: '/metrics',
    method: 'get',
    summary: 'Every node’s metrics as Prometheus text, or as JSON to who accepts that; an operator’s token',
    replyType: 'text/plain',
  },
  { path: '/docs', method: 'get', summary: 'A page to try the routes', replyType: 'text/html', open: true },
  { path: '/api-doc/openapi.json', method: 'get', summary: 'This document', replyType: 'application/json' },
]
