/** Embeddings: the pooled last hidden state with the adapter applied, normalised; LoRAX's and OpenAI's shapes. */

import type { Hono } from 'hono'
import pLimit from 'p-limit'
import { type EmbedRoute, type ParsedEmbed, parseEmbedRequest } from '../../shared/api/embed-request.ts'
import type { Embeddings } from '../../shared/api/openai-reply.ts'
import { RingletError } from '../../shared/errors.ts'
import type { Ticket } from '../../shared/ticket.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import { readAdapterTokens } from './delivered.ts'
import { apiOf } from './error-reply.ts'
import type { NodeContext } from './node-context.ts'
import { type PreparedPrompt, preparePrompts } from './prepare-prompt.ts'
import { readJsonBody } from './read-body.ts'
import { ofAdapter } from './refusals.ts'
import { adapterHeaders, countHeaders, ignoredHeader } from './reply-headers.ts'
import type { TicketGuard } from './ticket-guard.ts'

export function addEmbedRoutes(app: Hono, context: NodeContext, guard: TicketGuard): void {
  for (const route of ['/embed', '/v1/embeddings'] as const satisfies EmbedRoute[]) {
    app.post(route, async (c) => {
      const ticket = await guard(c.req.raw.headers, ['embed'])
      const parsed = parseEmbedRequest(await readJsonBody(c.req.raw, context.limits.maxBodyBytes), route)
      const signal = c.req.raw.signal
      const embedded = await embedAll(context, ticket, parsed, readAdapterTokens(c.req.raw.headers), signal)
      const headers = {
        ...adapterHeaders(context, ticket.adapter, embedded),
        ...ignoredHeader(parsed.ignored),
        ...countHeaders(embedded.promptTokens),
      }
      const first = embedded.vectors[0] ?? new Float32Array(0)
      return route === '/embed'
        ? c.json({ embeddings: [...first] }, 200, headers)
        : c.json(toEmbeddings(parsed, embedded, context.identity.baseModel), 200, headers)
    })
  }
}

interface Embedded {
  vectors: Float32Array[]
  promptTokens: number
  adapter: { digest: string; cacheTier: 'remote' | 'disk' | 'ram' | 'engine' } | undefined
}

async function embedAll(
  context: NodeContext,
  ticket: Ticket,
  parsed: ParsedEmbed,
  tokens: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<Embedded> {
  if (context.draining()) {
    throw new RingletError('node_draining', 'this node takes no new requests', { retryAfterSeconds: 1 })
  }
  const { spec } = context.engine
  if (parsed.dimensions !== undefined && parsed.dimensions > spec.hiddenSize) {
    const message = `\`dimensions\` must be <= ${spec.hiddenSize}. Given: ${parsed.dimensions}`
    throw new RingletError('field_invalid', message, { param: 'dimensions' })
  }
  checkReplySize(parsed, parsed.dimensions ?? spec.hiddenSize, context.limits.maxEmbeddingBytes)
  const limits = {
    maxPositions: spec.maxPositions,
    vocabSize: spec.vocabSize,
    maxNewTokens: undefined,
    promptField: parsed.route === '/embed' ? ('inputs' as const) : ('input' as const),
  }
  const inputs = parsed.inputs.map((input) =>
    typeof input === 'string' ? { kind: 'text' as const, text: input } : { kind: 'tokens' as const, tokens: input },
  )
  const prompts = await preparePrompts(inputs, {}, limits, context, { tenantId: ticket.tenantId, signal })
  const lease =
    ticket.adapter.kind === 'base'
      ? undefined
      : await context.adapters
          .acquire(ticket.adapter, { tenantId: ticket.tenantId, tokens, signal })
          .catch((error: unknown) => {
            throw ofAdapter(error, apiOf(parsed.route), ticket.adapter)
          })
  try {
    const vectors = await runAll(context, prompts, { tenantId: ticket.tenantId, signal, adapter: lease?.packed })
    return {
      vectors: vectors.map((vector) => normalise(vector.subarray(0, parsed.dimensions ?? vector.length))),
      promptTokens: prompts.reduce((sum, prompt) => sum + prompt.tokens.length, 0),
      adapter: lease,
    }
  } finally {
    lease?.release()
  }
}

/** Bytes a number takes at most: as JSON digits of a double, a comma behind; or four in base64. */
const BYTES_PER_NUMBER = { float: 24, base64: 16 / 3 } as const

function checkReplySize({ inputs, encoding, route }: ParsedEmbed, dimensions: number, mostBytes: number): void {
  const mostInputs = Math.floor(mostBytes / (dimensions * BYTES_PER_NUMBER[encoding]))
  if (inputs.length > mostInputs) {
    const limit = `a reply carries up to ${mostInputs} embeddings of ${dimensions} numbers as ${encoding}`
    const ask = `send fewer inputs at once${encoding === 'float' ? ', or ask for `encoding_format` base64' : ''}`
    const param = route === '/embed' ? 'inputs' : 'input'
    throw new RingletError('field_invalid', `${limit}. Given: ${inputs.length}; ${ask}`, { param })
  }
}

interface EmbedShared {
  tenantId: string
  signal: AbortSignal
  adapter: PackedAdapter | undefined
}

/**
 * As many at a time as keep the engine busy: a list of texts may be longer than the engine's queue. The first failure ends
 * the others, and nothing runs any more when this settles, so that the adapter can be given back.
 */
async function runAll(
  { engine, clock, limits }: NodeContext,
  prompts: readonly PreparedPrompt[],
  { tenantId, signal, adapter }: EmbedShared,
): Promise<Float32Array[]> {
  const deadline = clock.steady() + limits.requestTimeoutMs
  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  const limit = pLimit(engine.spec.maxRows)
  const results = await Promise.allSettled(
    prompts.map(({ tokens }) =>
      limit(async () => {
        either.throwIfAborted()
        const given = { tokens, tenantId, pooling: 'mean', deadline, signal: either } as const
        try {
          return await engine.embed(adapter === undefined ? given : { ...given, adapter })
        } catch (error) {
          failed.abort(error)
          throw error
        }
      }),
    ),
  )
  either.throwIfAborted()
  // None was rejected, or the signal would be aborted.
  return results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
}

/** To length 1, as OpenAI's are, so that a dot product is a cosine. */
function normalise(vector: Float32Array): Float32Array {
  const length = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0))
  return length === 0 ? vector : vector.map((x) => x / length)
}

function toEmbeddings(parsed: ParsedEmbed, embedded: Embedded, baseModel: string): Embeddings {
  return {
    object: 'list',
    data: embedded.vectors.map((vector, index) => ({
      object: 'embedding',
      index,
      embedding: parsed.encoding === 'base64' ? toBase64(vector) : [...vector],
    })),
    model: parsed.adapter.model || baseModel,
    usage: { prompt_tokens: embedded.promptTokens, total_tokens: embedded.promptTokens },
  }
}

/** Little-endian f32, which is this machine's order on every platform that ONNX Runtime serves. */
function toBase64(vector: Float32Array): string {
  return Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString('base64')
}
