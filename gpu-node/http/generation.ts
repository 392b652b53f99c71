/**
 * One generating request on this node: adapter leased, sequences submitted, events collected, lease given back. Each request
 * ends once: all its choices ended, or one error for all of them.
 */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { AdapterTier } from '../../shared/fleet.ts'
import type { Delivered, Ticket } from '../../shared/ticket.ts'
import type { AdapterLease, AdapterTokens, LoadProgress } from '../adapters/adapter-store.ts'
import type { EngineEvent } from '../engine/engine-types.ts'
import { type Choice, type ChoiceEvent, createChoice } from './choice.ts'
import { createEventQueue } from './event-queue.ts'
import type { NodeContext } from './node-context.ts'
import { type PreparedPrompt, preparePrompt } from './prepare-prompt.ts'
import { checkLogitBias, planSequences, type SequencePlan, toSequenceRequest } from './sequence-request.ts'

export interface GenerationInput {
  ticket: Ticket
  request: GenerateRequest
  adapterTokens: AdapterTokens
  delivered: Delivered
  /** The client left. */
  signal: AbortSignal
  onProgress?: (progress: GenerationProgress) => void
}

export type GenerationProgress = LoadProgress | { phase: 'queued'; waiting: number }

export interface ServedAdapter {
  digest: string
  cacheTier: AdapterTier
}

/** Milliseconds; what has not happened yet is absent. */
export interface GenerationTimings {
  /** Unix ms on the steady clock. */
  arrivedAt: number
  preparedAt: number
  loadMs?: number
  queuedMs?: number
  prefillMs?: number
  firstTokenAt?: number
  endedAt?: number
}

export interface Generation {
  /** `undefined`: the base model. */
  adapter: ServedAdapter | undefined
  prompts: PreparedPrompt[]
  /** `request.bestOf` for each prompt, in order. */
  choices: Choice[]
  /** Of each choice. */
  seeds: number[]
  /** Of each prompt that asked for them; the first token has none (NaN). */
  promptLogprobs: (Float32Array | undefined)[]
  timings: GenerationTimings
  /** Ends when all choices have; throws when one failed or the client left. To be read once. */
  events: AsyncIterable<ChoiceEvent[]>
  /** Ends what still runs; `events` throws then. */
  abort(): void
}

/** Resolves once the adapter is leased and the sequences are queued. */
export async function startGeneration(context: NodeContext, input: GenerationInput): Promise<Generation> {
  if (context.draining()) {
    throw new RingletError('node_draining', 'this node takes no new requests', { retryAfterSeconds: 1 })
  }
  const { request, ticket } = input
  const arrivedAt = context.clock.steady()
  checkLogitBias(request, context.engine.spec.vocabSize)
  const limits = {
    maxPositions: context.engine.spec.maxPositions,
    vocabSize: context.engine.spec.vocabSize,
    maxNewTokens: ticket.limits.maxNewTokens,
  }
  const prompts = request.prompts.map((prompt) => preparePrompt(prompt, request, limits, context))
  const timings: GenerationTimings = { arrivedAt, preparedAt: context.clock.steady() }
  const lease = await acquireAdapter(context, input)
  if (lease !== undefined) {
    timings.loadMs = lease.loadMs
    context.metrics.adapterLoaded(lease.cacheTier, lease.loadMs)
  }
  try {
    input.signal.throwIfAborted()
    return submitAll(context, input, prompts, lease, timings)
  } catch (error) {
    lease?.release()
    throw error
  }
}

async function acquireAdapter(context: NodeContext, input: GenerationInput): Promise<AdapterLease | undefined> {
  const { ticket } = input
  if (ticket.adapter.kind === 'base') {
    return undefined
  }
  const lease = await context.adapters.acquire(ticket.adapter, {
    tenantId: ticket.tenantId,
    tokens: input.adapterTokens,
    signal: input.signal,
    ...(input.onProgress === undefined ? {} : { onProgress: input.onProgress }),
  })
  const inEngine = lease.cacheTier === 'ram' && context.engine.isResident(lease.digest)
  return inEngine ? { ...lease, cacheTier: 'engine' } : lease
}

function submitAll(
  context: NodeContext,
  input: GenerationInput,
  prompts: PreparedPrompt[],
  lease: AdapterLease | undefined,
  timings: GenerationTimings,
): Generation {
  const { request, ticket } = input
  const plans = planSequences(prompts, request, ticket.seed)
  const deadline = timings.arrivedAt + context.limits.requestTimeoutMs
  const queue = createEventQueue<ChoiceEvent>()
  const aborts: (() => void)[] = []
  const promptLogprobs: (Float32Array | undefined)[] = prompts.map(() => undefined)
  const meter = context.metrics.generation(lease?.digest)
  let running = plans.length

  const abortAll = (): void => {
    for (const abort of aborts) {
      abort()
    }
  }
  const onClientGone = (): void => {
    queue.close(clientGone())
    abortAll()
  }
  const sequenceEnded = (): void => {
    running--
    if (running === 0) {
      input.signal.removeEventListener('abort', onClientGone)
      timings.endedAt = context.clock.steady()
      lease?.release()
      queue.close()
    }
  }
  const emit = (events: ChoiceEvent[]): void => {
    for (const event of events) {
      queue.push(event)
    }
  }

  const choices = plans.map((plan) => {
    const choice = createChoice(plan.sequence, context.tokenizer, {
      stop: request.stop,
      keepStopText: request.keepStopText,
      standsAlone: !request.echoPrompt,
    })
    return choice
  })
  input.signal.addEventListener('abort', onClientGone)
  plans.forEach((plan, i) => {
    const choice = choices[i]
    if (choice === undefined) {
      return
    }
    const delivered = input.delivered[String(plan.sequence)] ?? []
    const early = replayDelivered(choice, delivered, plan, request, context.eosTokens)
    if (early) {
      emit(choice.end(early))
      sequenceEnded()
      return
    }
    const sequence = toSequenceRequest(plan, request, {
      ticket,
      adapterDigest: lease?.digest,
      eosTokens: context.eosTokens,
      grammarId: undefined,
      deadline,
      delivered,
    })
    const scoresOnly = plan.prompt.maxNewTokens === 0
    const onEvent = (event: EngineEvent): void => {
      switch (event.kind) {
        case 'started':
          timings.queuedMs ??= event.queuedMs
          meter.started(event.queuedMs, plan.prompt.tokens.length, event.cachedTokens)
          break
        case 'prompt_logprobs':
          promptLogprobs[Math.floor(plan.sequence / request.bestOf)] ??= event.logprobs
          break
        case 'token':
          timings.prefillMs ??= event.prefillMs
          timings.firstTokenAt ??= context.clock.steady()
          meter.token(choice.index, context.clock.steady(), timings.arrivedAt)
          if (scoresOnly) {
            emit(choice.end('length'))
            abort()
            break
          }
          emit(choice.push(event.token))
          if (choice.finish !== undefined) {
            // A stop string: the engine, which knows no text, is told to go no further.
            abort()
          }
          break
        case 'finished':
          emit(choice.end(event.reason))
          sequenceEnded()
          break
        case 'failed':
          queue.close(
            new RingletError(event.code, event.message, {
              ...(event.retryAfterSeconds === undefined ? {} : { retryAfterSeconds: event.retryAfterSeconds }),
            }),
          )
          abortAll()
          sequenceEnded()
          break
        case 'aborted':
          if (choice.finish === undefined) {
            queue.close(clientGone())
          }
          sequenceEnded()
          break
      }
    }
    const abort = context.engine.submit(sequence, lease?.packed, onEvent)
    aborts.push(abort)
  })
  input.onProgress?.({ phase: 'queued', waiting: context.engine.stats().waiting })
  return {
    adapter: lease === undefined ? undefined : { digest: lease.digest, cacheTier: lease.cacheTier },
    prompts,
    choices,
    seeds: plans.map((plan) => plan.seed),
    promptLogprobs,
    timings,
    events: queue,
    abort: onClientGone,
  }
}

/** The reason why nothing is left to generate after the delivered tokens, if so. */
function replayDelivered(
  choice: Choice,
  delivered: readonly number[],
  plan: SequencePlan,
  request: GenerateRequest,
  eosTokens: readonly number[],
): 'eos' | 'stop' | 'length' | undefined {
  let stopped = false
  for (const tokenId of delivered) {
    stopped = choice.replay(tokenId) || stopped
  }
  const last = delivered.at(-1)
  if (stopped) {
    return 'stop'
  }
  if (last !== undefined && !request.ignoreEos && eosTokens.includes(last)) {
    return 'eos'
  }
  return last !== undefined && delivered.length >= plan.prompt.maxNewTokens ? 'length' : undefined
}

/** Never reaches a client: there is none. */
function clientGone(): DOMException {
  return new DOMException('the client left', 'AbortError')
}
