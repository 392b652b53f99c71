/**
 * A client for browsers and Node, typed by the schemas that the endpoint itself parses with. LoRAX's routes and OpenAI's;
 * streams are async iterables that survive a dropped connection.
 *
 *   const ringlet = createRingletClient({ baseUrl: 'http://127.0.0.1:8787', token })
 *   const { generated_text } = await ringlet.generate({ inputs: 'Hello', parameters: { adapter_id: 'pirate' } })
 *   for await (const chunk of ringlet.chatStream({ model: 'pirate', messages })) …
 */

import type { z } from 'zod'
import type { loraxEmbedSchema, openAiEmbedSchema } from '../api/embed-request.ts'
import {
  loraxEmbedReplySchema,
  loraxEventSchema,
  loraxReplySchema,
  loraxTokenizeReplySchema,
} from '../api/lorax-reply.ts'
import type { loraxRequestSchema } from '../api/lorax-request.ts'
import {
  chatChunkSchema,
  chatCompletionSchema,
  completionChunkSchema,
  completionSchema,
  embeddingsSchema,
  modelListSchema,
  modelSchema,
} from '../api/openai-reply.ts'
import type { chatRequestSchema, completionRequestSchema } from '../api/openai-request.ts'
import { readApiError } from './api-error.ts'
import { readEventStream, type StreamProgress } from './event-stream.ts'

export interface RingletClientOptions {
  /** The edge's address, e.g. `https://ringlet.example.com`. */
  baseUrl: string
  /** The tenant's token, `rl_…`. */
  token: string
  /** For private adapters: the token of their home; `api_token` in a body wins. */
  adapterToken?: string
  fetch?: typeof fetch
  /** How often a stream whose connection broke is taken up again; 5, over about eight seconds. */
  maxResumes?: number
}

export interface CallOptions {
  signal?: AbortSignal
  /** 1 to 128 letters, digits and `._:-`; made up for streams when absent. */
  requestId?: string
}

export interface StreamOptions extends CallOptions {
  /** Called while the adapter loads and the request waits. */
  onProgress?: (progress: StreamProgress) => void
}

/**
 * The endpoint sorts unknown fields itself, so its schemas let them through at every depth; callers get the known ones alone.
 * Records (of names that are the caller's own) stay as they are.
 */
type Known<Input> = Input extends readonly (infer Item)[]
  ? Known<Item>[]
  : Input extends object
    ? [keyof Named<Input>] extends [never]
      ? Input
      : { [Key in keyof Named<Input>]: Known<Named<Input>[Key]> }
    : Input
type Named<Input> = { [Key in keyof Input as string extends Key ? never : Key]: Input[Key] }
type LoraxInput = Known<z.input<typeof loraxRequestSchema>>
type ChatInput = Omit<Known<z.input<typeof chatRequestSchema>>, 'stream'>
type CompletionInput = Omit<Known<z.input<typeof completionRequestSchema>>, 'stream'>

export type RingletClient = ReturnType<typeof createRingletClient>

export function createRingletClient(options: RingletClientOptions) {
  const callFetch = options.fetch ?? ((input: string, init: RequestInit) => fetch(input, init))
  const base = options.baseUrl.replace(/\/+$/, '')

  const send = (method: string, path: string, body: unknown, call: CallOptions, further: Record<string, string> = {}) =>
    callFetch(base + path, {
      method,
      headers: {
        authorization: `Bearer ${options.token}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(options.adapterToken === undefined ? {} : { 'x-adapter-token': options.adapterToken }),
        ...(call.requestId === undefined ? {} : { 'x-request-id': call.requestId }),
        ...further,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(call.signal === undefined ? {} : { signal: call.signal }),
    })

  const ask = async <Schema extends z.ZodType>(
    schema: Schema,
    path: string,
    body?: unknown,
    call: CallOptions = {},
  ): Promise<z.output<Schema>> => {
    const response = await send(body === undefined ? 'GET' : 'POST', path, body, call)
    if (!response.ok) {
      throw await readApiError(response)
    }
    return schema.parse(await response.json())
  }

  const stream = <Schema extends z.ZodType>(
    schema: Schema,
    path: string,
    body: unknown,
    call: StreamOptions,
    isLast: (value: z.output<Schema>) => boolean,
  ): AsyncGenerator<z.output<Schema>, void, undefined> => {
    // The same id on every connection: under it the endpoint remembers what was sent.
    const requestId = call.requestId ?? crypto.randomUUID()
    return readEventStream({
      schema,
      isLast,
      maxResumes: options.maxResumes ?? 5,
      connect: (lastEventId) =>
        send(
          'POST',
          path,
          body,
          { ...call, requestId },
          {
            accept: 'text/event-stream',
            ...(lastEventId === undefined ? {} : { 'last-event-id': lastEventId }),
            ...(call.onProgress === undefined ? {} : { 'x-progress': '1' }),
          },
        ),
      ...(call.onProgress === undefined ? {} : { onProgress: call.onProgress }),
      ...(call.signal === undefined ? {} : { signal: call.signal }),
    })
  }
  const never = () => false

  return {
    generate: (request: LoraxInput, call?: CallOptions) => ask(loraxReplySchema, '/generate', request, call),
    generateStream: (request: LoraxInput, call: StreamOptions = {}) =>
      stream(loraxEventSchema, '/generate_stream', request, call, (event) => event.generated_text !== null),
    chat: (request: ChatInput, call?: CallOptions) =>
      ask(chatCompletionSchema, '/v1/chat/completions', { ...request, stream: false }, call),
    chatStream: (request: ChatInput, call: StreamOptions = {}) =>
      stream(chatChunkSchema, '/v1/chat/completions', { ...request, stream: true }, call, never),
    complete: (request: CompletionInput, call?: CallOptions) =>
      ask(completionSchema, '/v1/completions', { ...request, stream: false }, call),
    completeStream: (request: CompletionInput, call: StreamOptions = {}) =>
      stream(completionChunkSchema, '/v1/completions', { ...request, stream: true }, call, never),
    embed: (request: Known<z.input<typeof loraxEmbedSchema>>, call?: CallOptions) =>
      ask(loraxEmbedReplySchema, '/embed', request, call),
    embeddings: (request: Known<z.input<typeof openAiEmbedSchema>>, call?: CallOptions) =>
      ask(embeddingsSchema, '/v1/embeddings', request, call),
    tokenize: (inputs: string, call?: CallOptions) => ask(loraxTokenizeReplySchema, '/tokenize', { inputs }, call),
    /** The caller's view of one model or adapter, by name or alias. */
    model: (id: string, call?: CallOptions) =>
      ask(modelSchema, `/v1/models/${encodeURIComponent(id)}`, undefined, call),
    models: (call?: CallOptions) => ask(modelListSchema, '/v1/models', undefined, call),
  }
}
