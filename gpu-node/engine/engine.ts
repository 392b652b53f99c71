/**
 * The engine: steps over sequences of token ids with their adapters, on one ModelRunner, in one thread.
 * Knows nothing of HTTP, text, threads, or where adapters come from.
 *
 * A step: expire · draw for rows whose mask came · preempt · admit · plan · one run that decodes all running rows and takes
 * chunks of prompts, where the runner can do both at once.
 */

import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import { Admitter } from './admitter.ts'
import { DEFAULT_LIMITS, type EngineLimits } from './engine-limits.ts'
import type { EngineStats, MixedRuns, ModelRunner, SequenceRequest } from './engine-types.ts'
import { checkInvariants, type EngineSnapshot } from './invariants.ts'
import type { MaskSource } from './mask-source.ts'
import { RunCost } from './run-cost.ts'
import {
  type EmbedTask,
  embedSequence,
  endReached,
  generateSequence,
  type Sequence,
  wantsPromptLogprobs,
} from './sequence.ts'
import { type EngineOutput, failedEvent, SequenceTable } from './sequence-table.ts'
import { type PrefillView, planStep, type StepPlan } from './step-plan.ts'
import { type PromptPart, RunFailed, StepRunner } from './step-runner.ts'
import { checkRequest, checkTokens } from './submission.ts'

/** What became of a step. */
export type StepOutcome =
  | { kind: 'ran' }
  /** There is no sequence. */
  | { kind: 'idle' }
  /** There are sequences, and none can go on before a mask comes, a deadline passes or one more is submitted. */
  | { kind: 'deferred' }
  /** A sequence that can never run was failed; nothing else was done. */
  | { kind: 'unserviceable'; error: unknown }
  /** The runner failed, what it ran was not committed; the next step repeats it. */
  | { kind: 'retry'; error: unknown }
  /** The engine is unhealthy: every sequence has failed, and every later step says so again. */
  | { kind: 'fatal'; error: unknown }

export interface EngineParts {
  runner: ModelRunner
  limits?: Partial<EngineLimits>
  masks?: MaskSource
  /** Milliseconds of a monotonic clock; deadlines are read on it. */
  now: () => number
  emit: (output: EngineOutput) => void
}

/** Tokens of a prompt with log-probabilities in one run: each takes a row of logits. */
const MAX_LOGPROB_CHUNK = 32
/** Runs that may fail in a row before the engine counts as broken. */
const MAX_FAILURES_IN_ROW = 6
/** Runs of one prompt that may fail in a row before its sequence does. */
const MAX_SEQUENCE_FAILURES = 2

export class Engine {
  readonly #runner: ModelRunner
  readonly #limits: EngineLimits
  readonly #hasMasks: boolean
  readonly #now: () => number
  readonly #table: SequenceTable
  readonly #steps: StepRunner
  readonly #unloads: { digest: string; users: Set<string>; done: () => void }[] = []
  readonly #cost = new RunCost()
  readonly #admitter: Admitter
  #stepCount = 0
  #maxAbortSteps = 0
  #failuresInRow = 0
  #failure: { error: unknown } | undefined
  #draining = false
  #violations: string[] = []

  constructor({ runner, limits, masks, now, emit }: EngineParts) {
    this.#runner = runner
    this.#limits = { ...DEFAULT_LIMITS, ...limits }
    this.#hasMasks = masks !== undefined
    this.#now = now
    this.#table = new SequenceTable({ runner, limits: this.#limits, masks, now, emit })
    this.#steps = new StepRunner({ runner, table: this.#table, masks, maxGuesses: this.#limits.maxGuesses, now })
    this.#admitter = new Admitter(this.#table, this.#limits, runner.maxRows)
  }

  /** Queues a sequence. Whatever is wrong with it comes as its one `failed` event. */
  submit(request: SequenceRequest, adapter: PackedAdapter | undefined): void {
    this.#accept(request.sequenceId, request.tenantId, () => {
      checkRequest(request, adapter, this.#runner, this.#hasMasks)
      const kvKind = this.#runner.kvKind?.(request.promptTokens.length)
      return generateSequence(request, adapter, { maxPositions: this.#runner.maxPositions, kvKind }, this.#now())
    })
  }

  /** Ends with an `embedding` and then `finished`. */
  submitEmbedding(task: EmbedTask, adapter: PackedAdapter | undefined): void {
    this.#accept(task.sequenceId, task.tenantId, () => {
      checkTokens(task.tokens, adapter, this.#runner, 0)
      return embedSequence(task, adapter, this.#runner.hiddenSize, this.#now())
    })
  }

  /** Nothing happens when the sequence has ended. `sinceStep`: the step count when the abort was asked for. */
  abort(sequenceId: string, sinceStep = this.#stepCount): void {
    const sequence = this.#table.get(sequenceId)
    if (sequence === undefined) {
      return
    }
    if (sequence.kvRow !== undefined) {
      this.#maxAbortSteps = Math.max(this.#maxAbortSteps, this.#stepCount - sinceStep)
    }
    this.#table.end(sequence, { kind: 'aborted', sequenceId })
  }

  /** Loads ahead of need; false when no slot is free or idle. */
  preloadAdapter(adapter: PackedAdapter): boolean {
    return this.#table.slots.preload(adapter)
  }

  pinAdapter(adapter: PackedAdapter): void {
    this.#table.slots.pin(adapter)
  }

  unpinAdapter(digest: string): void {
    this.#table.slots.unpin(digest)
  }

  /** Calls `done` once every sequence that is here now and uses the adapter has ended, and its slot was freed. */
  unloadAdapter(digest: string, done: () => void): void {
    const users = this.#table.all().filter((sequence) => sequence.adapter?.digest === digest)
    this.#unloads.push({ digest, users: new Set(users.map((sequence) => sequence.id)), done })
    this.#finishUnloads()
  }

  /** From now on submissions fail with `node_draining`; what is here goes on. */
  drain(): void {
    this.#draining = true
  }

  /** Fails whatever is here. */
  failAll(error: RingletError): void {
    for (const sequence of this.#table.all()) {
      this.#table.fail(sequence, error)
    }
  }

  get sequenceCount(): number {
    return this.#table.size
  }

  get stepCount(): number {
    return this.#stepCount
  }

  /** When the next deadline passes; Infinity without one. */
  get nextDeadline(): number {
    return Math.min(...this.#table.all().map((sequence) => sequence.deadline))
  }

  snapshot(): EngineSnapshot {
    return this.#table.snapshot()
  }

  stats(): EngineStats {
    const { rows, queue, slots, prefixes } = this.#table
    return {
      waiting: queue.size,
      running: this.#runner.maxRows - rows.freeCount,
      freeRows: rows.freeCount,
      maxRows: this.#runner.maxRows,
      steps: this.#stepCount,
      prefillTokens: this.#steps.prefillTokens,
      decodeTokens: this.#steps.decodeTokens,
      prefixHitTokens: this.#table.prefixHitTokens,
      maxAbortSteps: this.#maxAbortSteps,
      preemptions: this.#table.preemptions,
      prefixBytes: prefixes.bytes,
      guessedTokens: this.#steps.guessedTokens,
      rightGuesses: this.#steps.rightGuesses,
      residentAdapters: slots
        .resident()
        .map(({ digest, bytes, leases, pinned }) => ({ digest, bytes, leases, pinned })),
      invariantViolations: this.#violations,
    }
  }

  step(): StepOutcome {
    if (this.#failure === undefined) {
      try {
        const outcome = this.#step()
        this.#finishUnloads()
        return outcome
      } catch (error) {
        this.#failure = { error }
      }
    }
    this.failAll(new RingletError('engine_failed', 'the engine failed', { cause: this.#failure.error }))
    this.#finishUnloads()
    return { kind: 'fatal', error: this.#failure.error }
  }

  #step(): StepOutcome {
    const now = this.#now()
    this.#expire(now)
    if (this.#table.size === 0) {
      this.#violations = checkInvariants(this.snapshot())
      return { kind: 'idle' }
    }
    const drew = this.#steps.drawHeld()
    const admitted = this.#admitter.admit(now)
    if (admitted.kind === 'refused') {
      return { kind: 'unserviceable', error: admitted.error }
    }
    const prefilling = this.#table.rows.prefilling()
    const views = this.#prefillViews(prefilling)
    const plan = this.#plan(views, admitted.loaded)
    if (!plan.decode && plan.chunks.length === 0) {
      return drew || admitted.loaded ? { kind: 'ran' } : { kind: 'deferred' }
    }
    this.#stepCount++
    const parts = plan.chunks.map(({ index, tokens }) => ({ sequence: prefilling[index] as Sequence, tokens }))
    const alone = plan.chunks.some(({ index }) => views[index]?.alone === true)
    return this.#run(plan.decode, parts, alone ? undefined : this.#runner.mixed)
  }

  /** After a failure nothing shares a run: what the model cannot run must fail alone. */
  #prefillViews(prefilling: readonly Sequence[]): PrefillView[] {
    const { mixed } = this.#runner
    const slots = this.#table.rows.running().map((sequence) => sequence.adapterSlot)
    const mayMix = this.#failuresInRow === 0 && mixed?.takes(slots) === true
    return prefilling.map((sequence) => {
      const wantsAll = wantsPromptLogprobs(sequence)
      const special = wantsAll || sequence.work.kind === 'embed'
      return {
        remaining: sequence.remainingPrefill,
        startedAt: sequence.admittedAt,
        maxTokens: wantsAll ? MAX_LOGPROB_CHUNK : Number.POSITIVE_INFINITY,
        alone: special || !mayMix || mixed?.takes([sequence.adapterSlot]) !== true,
      }
    })
  }

  #plan(prefills: readonly PrefillView[], loadedAdapter: boolean): StepPlan {
    const { rows, queue } = this.#table
    const running = rows.running()
    const decoding = running.filter((sequence) => sequence.heldLogits === undefined).length
    const admissible = Math.min(queue.size, rows.freeCount)
    const costs = {
      decodeMs: this.#cost.decodeMs(running.length),
      prefillMsPerToken: this.#cost.prefillMsPerToken,
    }
    const decodeAlone = this.#cost.wantsDecodeAlone
    return planStep({ decoding, prefills, admissible, loadedAdapter, decodeAlone }, this.#limits, costs)
  }

  #run(decode: boolean, parts: readonly PromptPart[], mixed: MixedRuns | undefined): StepOutcome {
    const [first, ...others] = parts
    try {
      if (mixed !== undefined && (decode ? first !== undefined : others.length > 0)) {
        const tokens = parts.reduce((sum, part) => sum + part.tokens, 0)
        this.#timed(this.#table.rows.runningCount, tokens, () => this.#steps.runMixed(mixed, parts))
        return { kind: 'ran' }
      }
      if (decode && (first !== undefined || !this.#steps.decodeAhead())) {
        this.#timed(this.#table.rows.runningCount, 0, () => this.#steps.decode())
      }
      if (first !== undefined) {
        this.#timed(0, first.tokens, () => this.#steps.prefill(first))
      }
      this.#failuresInRow = 0
      return { kind: 'ran' }
    } catch (error) {
      this.#failuresInRow++
      if (!(error instanceof RunFailed) || this.#failuresInRow >= MAX_FAILURES_IN_ROW) {
        throw error
      }
      const { sequence, cause } = error
      if (sequence !== undefined && ++sequence.failures >= MAX_SEQUENCE_FAILURES) {
        this.#table.fail(sequence, new RingletError('engine_failed', 'the model failed on this prompt', { cause }))
      }
      return { kind: 'retry', error: cause }
    }
  }

  #timed(rows: number, tokens: number, run: () => void): void {
    const started = this.#now()
    run()
    this.#cost.measure(rows, tokens, this.#now() - started)
    this.#failuresInRow = 0
  }

  #accept(sequenceId: string, tenantId: string, make: () => Sequence): void {
    if (this.#table.get(sequenceId) !== undefined) {
      throw new Error(`sequence id ${sequenceId} is in use`)
    }
    try {
      this.#checkOpen(tenantId)
      const sequence = make()
      this.#table.add(sequence)
      const reason = endReached(sequence, this.#runner.maxPositions)
      if (reason !== undefined && !wantsPromptLogprobs(sequence)) {
        this.#table.end(sequence, { kind: 'finished', sequenceId, reason })
      }
    } catch (error) {
      if (!(error instanceof RingletError)) {
        throw error
      }
      this.#table.emit(failedEvent(sequenceId, error))
    }
  }

  #checkOpen(tenantId: string): void {
    if (this.#failure !== undefined) {
      throw new RingletError('engine_failed', 'the engine failed')
    }
    if (this.#draining) {
      throw new RingletError('node_draining', 'the node is draining')
    }
    const { queue } = this.#table
    if (!queue.hasPlaceFor(tenantId)) {
      const message = `${queue.size} sequences are waiting; at most ${this.#limits.maxWaiting} may, shared among tenants`
      throw new RingletError('queue_full', message, {
        retryAfterSeconds: this.#admitter.retryAfterSeconds(),
      })
    }
  }

  #expire(now: number): void {
    for (const sequence of this.#table.all()) {
      if (sequence.deadline < now) {
        const after = Math.round(now - sequence.submittedAt)
        this.#table.fail(sequence, new RingletError('deadline_exceeded', `the deadline passed after ${after} ms`))
      }
    }
  }

  #finishUnloads(): void {
    for (const unload of [...this.#unloads]) {
      if ([...unload.users].some((id) => this.#table.get(id) !== undefined)) {
        continue
      }
      this.#unloads.splice(this.#unloads.indexOf(unload), 1)
      this.#table.slots.unload(unload.digest)
      this.#table.prefixes.dropAdapter(unload.digest)
      unload.done()
    }
  }
}
