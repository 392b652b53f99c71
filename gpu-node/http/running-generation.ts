/** The sequences of one request while they run: engine events to choice events, one end for all, the lease given back then. */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { AdapterLease } from '../adapters/adapter-store.ts'
import type { EngineEvent } from '../engine/engine-types.ts'
import type { GrammarLease } from '../grammar/grammar-service.ts'
import type { EndedGeneration } from '../lorax-metrics.ts'
import type { GenerationMeter } from '../metrics.ts'
import { formatMarkers } from '../tools/tool-format.ts'
import { createToolParser, type ToolParser } from '../tools/tool-parser.ts'
import { type Choice, type ChoiceEvent, createChoice } from './choice.ts'
import { createEventQueue, type EventQueue } from './event-queue.ts'
import type { Generation, GenerationInput, GenerationTimings, PromptScores, ServedAdapter } from './generation.ts'
import { generationLine } from './generation-log.ts'
import type { NodeContext } from './node-context.ts'
import type { PreparedPrompt } from './prepare-prompt.ts'
import { planSequences, type SequencePlan, toSequenceRequest } from './sequence-request.ts'

export interface RunParts {
  context: NodeContext
  input: GenerationInput
  prompts: PreparedPrompt[]
  lease: AdapterLease | undefined
  grammar: GrammarLease | undefined
  /** Gives back adapter and grammar; called once, when all sequences have ended. */
  release: () => void
  timings: GenerationTimings
}

interface Running {
  plan: SequencePlan
  choice: Choice
  /** Until the sequence is submitted: nothing to abort. */
  abort: () => void
}

export class RunningGeneration implements Generation {
  readonly adapter: ServedAdapter | undefined
  readonly prompts: PreparedPrompt[]
  readonly choices: Choice[]
  readonly seeds: number[]
  readonly promptScores: (PromptScores | undefined)[]
  readonly timings: GenerationTimings
  readonly notEnforced: readonly string[]
  readonly createToolParser: (() => ToolParser) | undefined
  readonly #parts: RunParts
  readonly #meter: GenerationMeter
  readonly #queue: EventQueue<ChoiceEvent> = createEventQueue()
  readonly #running: Running[]
  /** Sequences that have not had their last event; at 0 the lease is given back. */
  #open: number
  #cachedTokens = 0
  #generatedTokens = 0
  #outcome = 'ok'

  /** Submits at once. */
  constructor(parts: RunParts) {
    const { context, input, prompts, lease } = parts
    const { request } = input
    const plans = planSequences(prompts, request, input.ticket.seed)
    this.#parts = parts
    this.#meter = context.metrics.generation(lease?.digest)
    this.#running = plans.map((plan) => ({ plan, choice: this.#createChoice(plan, request), abort: () => {} }))
    this.#open = plans.length
    this.adapter = lease === undefined ? undefined : { digest: lease.digest, cacheTier: lease.cacheTier }
    this.prompts = prompts
    this.choices = this.#running.map(({ choice }) => choice)
    this.seeds = plans.map((plan) => plan.seed)
    this.promptScores = prompts.map(() => undefined)
    this.timings = parts.timings
    this.notEnforced = parts.grammar?.notEnforced ?? []
    this.createToolParser = toolParserOf(request, context)
    input.signal.addEventListener('abort', this.abort)
    for (const sequence of this.#running) {
      this.#submit(sequence)
    }
    input.onProgress?.({ phase: 'queued', waiting: context.engine.stats().waiting })
  }

  get events(): AsyncIterable<ChoiceEvent[]> {
    return this.#queue
  }

  /** The client left; nobody sees the error. */
  readonly abort = (): void => {
    this.#fail(new DOMException('the client left', 'AbortError'))
  }

  #createChoice(plan: SequencePlan, request: GenerateRequest): Choice {
    const { tokenizer, toolFormat } = this.#parts.context
    const markers = request.toolUse === undefined ? [] : formatMarkers(toolFormat)
    const shown = markers.map((marker) => tokenizer.tokenId(marker)).filter((id) => id !== undefined)
    return createChoice(plan.sequence, tokenizer, {
      shownSpecial: new Set(shown),
      stop: request.stop,
      keepStopText: request.keepStopText,
      standsAlone: !request.echoPrompt,
    })
  }

  #submit(running: Running): void {
    const { context, input, lease, grammar, timings } = this.#parts
    const { plan, choice } = running
    const delivered = input.delivered[String(plan.sequence)] ?? []
    const complete = replayDelivered(choice, delivered, plan, input.request, context.eosTokens)
    if (complete !== undefined) {
      const end = choice.end(complete)
      if (complete === 'length' && delivered.length > plan.prompt.maxNewTokens) {
        this.#emit(end) // the limit is lower than when these tokens came
      } // otherwise the client had it with its last token
      this.#sequenceEnded()
      return
    }
    const sequence = toSequenceRequest(plan, input.request, {
      ticket: input.ticket,
      adapterDigest: lease?.digest,
      eosTokens: context.eosTokens,
      grammarId: grammar?.grammarId,
      deadline: timings.arrivedAt + context.limits.requestTimeoutMs,
      delivered,
    })
    running.abort = context.engine.submit(sequence, lease?.packed, (event) => this.#onEvent(running, event))
  }

  #onEvent(running: Running, event: EngineEvent): void {
    const { plan, choice } = running
    const { timings } = this.#parts
    switch (event.kind) {
      case 'started':
        timings.queuedMs ??= event.queuedMs
        this.#cachedTokens += event.cachedTokens
        this.#meter.started(event.queuedMs, plan.prompt.tokens.length, event.cachedTokens)
        break
      case 'prompt_logprobs':
        this.promptScores[Math.floor(plan.sequence / this.#parts.input.request.bestOf)] ??= event
        break
      case 'token':
        this.#onToken(running, event)
        break
      case 'finished':
        this.#emit(choice.end(event.reason))
        this.#sequenceEnded()
        break
      case 'failed':
        // A sequence that a stop string ended has its answer, whatever becomes of the engine.
        if (choice.finish === undefined) {
          const { code, message, retryAfterSeconds } = event
          this.#fail(new RingletError(code, message, retryAfterSeconds === undefined ? {} : { retryAfterSeconds }))
        }
        this.#sequenceEnded()
        break
      case 'aborted':
        if (choice.finish === undefined) {
          this.abort()
        }
        this.#sequenceEnded()
        break
    }
  }

  #onToken({ plan, choice, abort }: Running, event: Extract<EngineEvent, { kind: 'token' }>): void {
    const { context, timings } = this.#parts
    const now = context.clock.steady()
    timings.prefillMs ??= event.prefillMs
    timings.firstTokenAt ??= now
    this.#meter.token(choice.index, now, timings.arrivedAt)
    this.#generatedTokens += plan.prompt.maxNewTokens === 0 ? 0 : 1
    // A request that only scores its prompt gets no token.
    this.#emit(plan.prompt.maxNewTokens === 0 ? choice.end('length') : choice.push(event.token))
    if (choice.finish !== undefined) {
      // The engine knows no text, so it is told where a stop string ended it.
      abort()
    }
  }

  #emit(events: ChoiceEvent[]): void {
    for (const event of events) {
      this.#queue.push(event)
    }
  }

  #fail(error: Error): void {
    if (this.#outcome === 'ok') {
      this.#outcome = error instanceof RingletError ? error.code : 'client_gone'
    }
    this.#queue.close(error)
    for (const { abort } of this.#running) {
      abort()
    }
  }

  #sequenceEnded(): void {
    this.#open--
    if (this.#open === 0) {
      const { context, input, release, timings } = this.#parts
      input.signal.removeEventListener('abort', this.abort)
      timings.endedAt = context.clock.steady()
      if (this.choices.every((choice) => choice.finish !== undefined)) {
        this.#meter.ended(this.#summary(timings.endedAt))
      }
      release()
      this.#queue.close()
      this.#log()
    }
  }

  #log(): void {
    const { context, input, prompts, timings } = this.#parts
    const { requestId, tenantId, adapter } = input.ticket
    const promptTokens = prompts.reduce((sum, prompt) => sum + prompt.tokens.length, 0)
    const counts = { promptTokens, cachedTokens: this.#cachedTokens, generatedTokens: this.#generatedTokens }
    const tier = this.adapter?.cacheTier
    const who = { requestId, tenantId, adapter, tier, sequences: this.choices.length }
    const ended = { ...who, ...counts, timings, outcome: this.#outcome }
    context.log.info(generationLine(ended), 'generation_end')
    context.tracer?.ended(ended, input.traceparent)
  }

  #summary(endedAt: number): EndedGeneration {
    const { arrivedAt, preparedAt, queuedMs = 0, loadMs = 0 } = this.timings
    return {
      totalMs: endedAt - arrivedAt,
      validationMs: preparedAt - arrivedAt,
      queueMs: queuedMs + loadMs,
      inputLengths: this.prompts.map((prompt) => prompt.tokens.length),
      generatedTokens: this.choices.reduce((sum, choice) => sum + choice.tokenCount, 0),
      maxNewTokens: this.prompts.reduce((sum, prompt) => sum + prompt.maxNewTokens, 0),
    }
  }
}

function toolParserOf({ toolUse }: GenerateRequest, { toolFormat }: NodeContext): (() => ToolParser) | undefined {
  if (toolUse === undefined || toolUse.choice.kind === 'none') {
    return undefined
  }
  const names = toolUse.tools.map((tool) => tool.function.name)
  return () => createToolParser(toolFormat, names)
}

/** Why nothing is left to generate after the delivered tokens, if so. */
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
