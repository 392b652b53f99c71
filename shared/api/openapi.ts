/** The endpoint's OpenAPI 3.1 document, made from the schemas that parse its requests. */

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
  openAiErrorSchema,
} from './openai-reply.ts'
import { chatRequestSchema, completionRequestSchema } from './openai-request.ts'

interface Route {
  path: string
  method: 'get' | 'post'
  summary: string
  request?: z.ZodType
  reply?: z.ZodType
  /** One event of the stream, where the route can stream. */
  event?: z.ZodType
  example?: object
}

const inputs = 'My name is Anna. Please send 3 red lamps to Berlin.'
const messages = [{ role: 'user', content: inputs }]
const modelSchema = z.object({
  id: z.string(),
  object: z.literal('model'),
  created: z.int(),
  owned_by: z.string(),
  parent: z.string().nullable().optional(),
  root: z.string().optional(),
})

const ROUTES: readonly Route[] = [
  {
    path: '/generate',
    method: 'post',
    summary: 'Generate (LoRAX)',
    request: loraxRequestSchema,
    reply: loraxReplySchema,
    example: { inputs, parameters: { adapter_id: 'orders-json', max_new_tokens: 64, details: false } },
  },
  {
    path: '/generate_stream',
    method: 'post',
    summary: 'Generate, one event a token (LoRAX)',
    request: loraxRequestSchema,
    event: loraxEventSchema,
    example: { inputs, parameters: { adapter_id: 'orders-json', max_new_tokens: 64 } },
  },
  {
    path: '/',
    method: 'post',
    summary: 'Generate; an array of one reply, or a stream with `stream: true` (LoRAX, what lorax-client calls)',
    request: loraxRequestSchema,
    reply: z.array(loraxReplySchema),
    event: loraxEventSchema,
    example: { inputs, stream: false, parameters: { max_new_tokens: 64 } },
  },
  {
    path: '/invocations',
    method: 'post',
    summary: 'As `/` (SageMaker)',
    request: loraxRequestSchema,
    reply: z.array(loraxReplySchema),
    event: loraxEventSchema,
    example: { inputs, parameters: { max_new_tokens: 64 } },
  },
  {
    path: '/v1/chat/completions',
    method: 'post',
    summary: 'Chat (OpenAI); `model` names the base model or an adapter',
    request: chatRequestSchema,
    reply: chatCompletionSchema,
    event: chatChunkSchema,
    example: { model: 'orders-json', messages, temperature: 0, max_tokens: 64, stream: true },
  },
  {
    path: '/v1/completions',
    method: 'post',
    summary: 'Complete (OpenAI)',
    request: completionRequestSchema,
    reply: completionSchema,
    event: completionChunkSchema,
    example: { model: 'orders-json', prompt: inputs, max_tokens: 32, temperature: 0 },
  },
  {
    path: '/v1/embeddings',
    method: 'post',
    summary: 'Embed (OpenAI)',
    request: openAiEmbedSchema,
    reply: embeddingsSchema,
    example: { model: 'orders-json', input: ['one', 'two'] },
  },
  {
    path: '/embed',
    method: 'post',
    summary: 'Embed (LoRAX)',
    request: loraxEmbedSchema,
    reply: loraxEmbedReplySchema,
    example: { inputs },
  },
  {
    path: '/tokenize',
    method: 'post',
    summary: 'Tokens of a text (LoRAX)',
    request: tokenizeSchema,
    reply: loraxTokenizeReplySchema,
    example: { inputs },
  },
  {
    path: '/v1/models',
    method: 'get',
    summary: 'The base model and the adapters that this token may name (OpenAI)',
    reply: z.object({ object: z.literal('list'), data: z.array(modelSchema) }),
  },
  { path: '/info', method: 'get', summary: 'What serves here (LoRAX)', reply: z.looseObject({ model_id: z.string() }) },
  { path: '/metrics', method: 'get', summary: 'Every node’s metrics as Prometheus text; an operator’s token' },
  { path: '/health', method: 'get', summary: 'Is the endpoint up? Needs no token' },
]

export function openApiDocument(serverUrl: string, version: string): object {
  const paths: Record<string, Record<string, object>> = {}
  for (const route of ROUTES) {
    paths[route.path] = { ...paths[route.path], [route.method]: toOperation(route) }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Ringlet',
      version,
      description: 'LoRA adapters of one base model behind one endpoint: LoRAX’s API, and OpenAI’s under /v1.',
    },
    servers: [{ url: serverUrl }],
    security: [{ tenantToken: [] }],
    components: {
      securitySchemes: { tenantToken: { type: 'http', scheme: 'bearer', description: 'A tenant’s token, `rl_…`' } },
      parameters: {
        adapterToken: header('x-adapter-token', 'Token for a private adapter’s home, e.g. the hub; `api_token` wins'),
        requestId: header('x-request-id', 'Comes back on the reply; under it a dropped stream resumes'),
        lastEventId: header('last-event-id', 'Resume a dropped stream after this event, within 60 s'),
        progress: header('x-progress', '1: tell the load and the queue as `ringlet-progress` events'),
      },
    },
    paths,
  }
}

function toOperation(route: Route): object {
  const openAi = route.path.startsWith('/v1')
  const parameter = (name: string) => ({ $ref: `#/components/parameters/${name}` })
  const content = {
    ...(route.reply === undefined ? {} : { 'application/json': { schema: toSchema(route.reply, 'output') } }),
    ...(route.event === undefined ? {} : { 'text/event-stream': { schema: toSchema(route.event, 'output') } }),
  }
  return {
    summary: route.summary,
    operationId: `${route.method} ${route.path}`,
    ...(route.path === '/health' ? { security: [] } : {}),
    ...(route.request === undefined
      ? {}
      : {
          parameters: [
            parameter('adapterToken'),
            parameter('requestId'),
            ...(route.event === undefined ? [] : [parameter('lastEventId'), parameter('progress')]),
          ],
          requestBody: {
            required: true,
            content: { 'application/json': { schema: toSchema(route.request, 'input'), example: route.example } },
          },
        }),
    responses: {
      200: { description: 'OK', ...(Object.keys(content).length === 0 ? {} : { content }) },
      default: {
        description: 'Refused; decide by `code`',
        content: {
          'application/json': { schema: toSchema(openAi ? openAiErrorSchema : loraxErrorSchema, 'output') },
        },
      },
    },
  }
}

function toSchema(schema: z.ZodType, io: 'input' | 'output'): object {
  const { $schema: _dialect, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' })
  return rest
}

function header(name: string, description: string): object {
  return { name, in: 'header', description, schema: { type: 'string' } }
}
