/** The generating routes: parse, start, answer whole or as a stream. */

import type { Context, Hono } from 'hono'
import { parseBody } from '../../shared/api/body-parse.ts'
import { type ParsedGenerate, parseGenerateBody } from '../../shared/api/generate-body.ts'
import { GENERATE_ROUTES, type GenerateRoute } from '../../shared/api/generate-request.ts'
import { nodeTag, RESUME_PATH, resumeQuestionSchema, streamFingerprint } from '../../shared/stream-resume.ts'
import type { Delivered, Ticket } from '../../shared/ticket.ts'
import { collectChoices } from './choice-results.ts'
import { readAdapterTokens, readDelivered } from './delivered.ts'
import { errorBody, toRingletError } from './error-reply.ts'
import { type EventWriter, eventStream } from './event-stream.ts'
import type { Generation, GenerationProgress } from './generation.ts'
import { toLoraxReply } from './lorax-reply.ts'
import { writeLoraxStream } from './lorax-stream.ts'
import type { NodeContext } from './node-context.ts'
import { toChatCompletion, toCompletion, usageOf } from './openai-reply.ts'
import { type DeliveredTokens, writeOpenAiStream } from './openai-stream.ts'
import type { PromptField } from './prepare-prompt.ts'
import { createProgressRelay } from './progress-relay.ts'
import { readJsonBody } from './read-body.ts'
import {
  adapterHeaders,
  computeType,
  countHeaders,
  ignoredHeader,
  loraxTimingHeaders,
  serverTiming,
} from './reply-headers.ts'
import { createResumeBuffer, type OpenStream, type ResumeBuffer } from './resume-buffer.ts'
import { startGeneration } from './start-generation.ts'
import { createStreamPosition } from './stream-position.ts'
import type { TicketGuard } from './ticket-guard.ts'

/** A client that sends it gets `ringlet-progress` events. */
const PROGRESS_HEADER = 'x-progress'

export function addGenerateRoutes(app: Hono, context: NodeContext, guard: TicketGuard): void {
  const resume = createResumeBuffer(context.limits.resumeMs)
  for (const route of GENERATE_ROUTES) {
    app.post(route, (c) => handleGenerate(c, route, context, guard, resume))
  }
  // Also while the node drains: it needs no engine, and the rest may run elsewhere.
  app.post(RESUME_PATH, async (c) => {
    const { tenantId, requestId, adapter } = await guard(c.req.raw.headers, ['generate'])
    const question = parseBody(resumeQuestionSchema, await readJsonBody(c.req.raw, context.limits.maxBodyBytes))
    const { fingerprint, lastEventId } = question
    return c.json(resume.find({ tenantId, requestId, adapter, fingerprint }, lastEventId))
  })
}

interface Job {
  /** On the steady clock. */
  arrivedAt: number
  ticket: Ticket
  parsed: ParsedGenerate
  delivered: Delivered
  /** Aborted when the client leaves. */
  gone: AbortController
}

interface StreamJob extends Job {
  sent: OpenStream
}

async function handleGenerate(
  c: Context,
  route: GenerateRoute,
  context: NodeContext,
  guard: TicketGuard,
  resume: ResumeBuffer,
): Promise<Response> {
  const arrivedAt = context.clock.steady()
  const gone = new AbortController()
  // Before anything is awaited: a client that leaves meanwhile is not heard by a listener that comes later.
  c.req.raw.signal.addEventListener('abort', () => gone.abort())
  const ticket = await guard(c.req.raw.headers, ['generate'])
  const body = await readJsonBody(c.req.raw, context.limits.maxBodyBytes)
  const parsed = parseGenerateBody(body, route, context.limits)
  const job: Job = { arrivedAt, ticket, parsed, delivered: readDelivered(c.req.raw.headers), gone }
  return parsed.stream ? replyStream(c, await remembered(job, body, resume), context) : replyWhole(c, job, context)
}

/** Each stream can be resumed, one that continues another's too. */
async function remembered(job: Job, body: unknown, resume: ResumeBuffer): Promise<StreamJob> {
  const { tenantId, requestId, adapter, seed, createdAt } = job.ticket
  const fingerprint = await streamFingerprint(job.parsed.route, body)
  const key = { tenantId, requestId, adapter, fingerprint }
  return { ...job, sent: resume.open(key, { seed, createdAt }, job.delivered) }
}

function start(
  c: Context,
  job: Job,
  context: NodeContext,
  onProgress?: (progress: GenerationProgress) => void,
): Promise<Generation> {
  return startGeneration(context, {
    ticket: job.ticket,
    api: job.parsed.api,
    request: job.parsed.request,
    promptField: promptFieldOf(job.parsed),
    adapterTokens: readAdapterTokens(c.req.raw.headers),
    delivered: job.delivered,
    traceparent: c.req.header('traceparent'),
    signal: job.gone.signal,
    ...(onProgress === undefined ? {} : { onProgress }),
  })
}

async function replyWhole(c: Context, job: Job, context: NodeContext): Promise<Response> {
  const { parsed, ticket } = job
  const generation = await start(c, job, context)
  const tells =
    parsed.api === 'openai' ? parsed.reply.logprobs : parsed.reply.details || parsed.reply.decoderInputDetails
  const results = await collectChoices(generation, parsed.request, tells, context.limits.maxScores)
  const usage = usageOf(generation)
  const headers = {
    ...adapterHeaders(context, ticket.adapter, generation),
    ...ignoredHeader([...parsed.ignored, ...generation.notEnforced]),
    ...serverTiming(generation),
    ...countHeaders(usage.prompt_tokens, usage.completion_tokens),
  }
  if (parsed.api === 'openai') {
    const shape = { tokenizer: context.tokenizer, parsed, ticket, identity: context.identity }
    const chat = parsed.route === '/v1/chat/completions'
    return c.json((chat ? toChatCompletion : toCompletion)(shape, generation, results), 200, headers)
  }
  const reply = toLoraxReply({ ...parsed, tokenizer: context.tokenizer }, generation, results)
  const timings = loraxTimingHeaders(
    context,
    generation,
    charactersOf(parsed),
    usage.prompt_tokens,
    usage.completion_tokens,
  )
  const compat = parsed.route === '/' || parsed.route === '/invocations'
  return c.json(compat ? [reply] : reply, 200, { ...headers, ...timings })
}

/**
 * The stream opens once the sequences are queued, so that refusals have their status. One that takes long, or whose client
 * wants to see the progress, opens earlier and lacks the headers that are not known yet.
 */
async function replyStream(c: Context, job: StreamJob, context: NodeContext): Promise<Response> {
  const { parsed, ticket, delivered, gone } = job
  const progress = createProgressRelay(context.clock)
  const starting = start(c, job, context, progress.push).then((generation) => {
    job.sent.answeredBy(generation.adapter?.digest)
    return generation
  })
  const wantsProgress = c.req.header(PROGRESS_HEADER) !== undefined
  const opened = wantsProgress ? undefined : await firstOf(starting, context.limits.heartbeatMs)
  const tag = nodeTag(context.identity.nodeId)
  const deliveredTokens = (choice: number): readonly number[] => delivered[String(choice)] ?? []
  const deliveredCount = (choice: number): number => deliveredTokens(choice).length
  return eventStream(c, {
    headers: {
      ...adapterHeaders(context, ticket.adapter, opened),
      ...ignoredHeader([...parsed.ignored, ...(opened?.notEnforced ?? [])]),
      ...(opened === undefined ? {} : { ...serverTiming(opened), ...countHeaders(usageOf(opened).prompt_tokens) }),
      ...(parsed.api === 'lorax'
        ? { 'x-compute-type': computeType(context), 'x-compute-characters': String(charactersOf(parsed)) }
        : {}),
    },
    heartbeatMs: context.limits.heartbeatMs,
    onClosed: (code) => {
      gone.abort()
      context.metrics.requestEnded(parsed.route, code, (context.clock.steady() - job.arrivedAt) / 1000)
    },
    toError: toRingletError,
    errorData: (error) => JSON.stringify(errorBody(error, parsed.api)),
    onSent: job.sent.note,
    write: async (writer) => {
      if (wantsProgress) {
        progress.listen((event) => void writer.progress(event, `0:${deliveredCount(0)}::${tag}`))
      }
      const generation = await starting
      if (opened === undefined) {
        await writer.started(generation.adapter?.digest, usageOf(generation).prompt_tokens)
      }
      const position = createStreamPosition(tag, deliveredCount)
      await writeEvents(context, job, generation, position, deliveredTokens, writer)
    },
  })
}

function writeEvents(
  context: NodeContext,
  { parsed, ticket }: Job,
  generation: Generation,
  position: ReturnType<typeof createStreamPosition>,
  delivered: DeliveredTokens,
  writer: EventWriter,
): Promise<void> {
  const { tokenizer, identity } = context
  return parsed.api === 'openai'
    ? writeOpenAiStream({ tokenizer, parsed, ticket, identity }, generation, position, delivered, writer)
    : writeLoraxStream({ ...parsed, tokenizer }, generation, position, writer)
}

function promptFieldOf({ route }: ParsedGenerate): PromptField {
  return route === '/v1/chat/completions' ? 'messages' : route === '/v1/completions' ? 'prompt' : 'inputs'
}

/** LoRAX counts the characters of `inputs`. */
function charactersOf(parsed: ParsedGenerate): number {
  const [prompt] = parsed.request.prompts
  const text = prompt?.kind === 'text' ? prompt.text : prompt?.kind === 'chat' ? prompt.messages[0]?.content : undefined
  return [...(text ?? '')].length
}

/** `undefined` when it has not settled after `ms`; a failure before is thrown. */
async function firstOf<Value>(promise: Promise<Value>, ms: number): Promise<Value | undefined> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(resolve, ms, undefined)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
