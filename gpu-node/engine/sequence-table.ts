/**
 * Every sequence that the engine holds, and all that one may own: its place in the queue, KV row, adapter lease and grammar.
 * The only place where these are taken and given back, and where a sequence ends: once, with one last event.
 */

import type { RingletError } from '../../shared/errors.ts'
import { AdapterSlots } from './adapter-slots.ts'
import type { EngineLimits } from './engine-limits.ts'
import type { EngineEvent, ModelRunner } from './engine-types.ts'
import type { EngineSnapshot } from './invariants.ts'
import { KvRows } from './kv-rows.ts'
import type { MaskSource } from './mask-source.ts'
import { PrefixCache } from './prefix-cache.ts'
import type { Sequence } from './sequence.ts'
import { PREFILL_TOKEN_COST, WaitingQueue } from './waiting-queue.ts'

export type EngineOutput = EngineEvent | { kind: 'embedding'; sequenceId: string; embedding: Float32Array }

export interface TableParts {
  runner: ModelRunner
  limits: EngineLimits
  masks: MaskSource | undefined
  now: () => number
  emit: (output: EngineOutput) => void
}

type LastEvent = Extract<EngineEvent, { kind: 'finished' | 'failed' | 'aborted' }>

export class SequenceTable {
  readonly rows: KvRows
  readonly slots: AdapterSlots
  readonly queue: WaitingQueue
  readonly prefixes: PrefixCache
  readonly emit: (output: EngineOutput) => void
  readonly #runner: ModelRunner
  readonly #masks: MaskSource | undefined
  readonly #now: () => number
  readonly #sequences = new Map<string, Sequence>()
  #submitted = 0
  #ended = 0
  /** Prompt tokens that needed no run. */
  prefixHitTokens = 0
  preemptions = 0

  constructor({ runner, limits, masks, now, emit }: TableParts) {
    this.rows = new KvRows(runner)
    this.slots = new AdapterSlots(runner)
    this.queue = new WaitingQueue(limits.maxWaiting)
    this.prefixes = new PrefixCache({ maxBytes: limits.prefixCacheBytes, blockTokens: limits.prefixBlock })
    this.emit = emit
    this.#runner = runner
    this.#masks = masks
    this.#now = now
  }

  get size(): number {
    return this.#sequences.size
  }

  get(sequenceId: string): Sequence | undefined {
    return this.#sequences.get(sequenceId)
  }

  all(): Sequence[] {
    return [...this.#sequences.values()]
  }

  add(sequence: Sequence): void {
    this.#sequences.set(sequence.id, sequence)
    this.queue.add(sequence)
    this.#submitted++
  }

  /** Waiting → prefilling: takes a lease on the adapter (loading it may throw), a KV row, and the prefix that is known. */
  admit(sequence: Sequence): void {
    if (sequence.adapter !== undefined) {
      const lease = this.slots.lease(sequence.adapter)
      sequence.adapterSlot = lease.adapterSlot
      sequence.releaseAdapter = lease.release
    }
    const kvRow = this.rows.takeForPrefill(sequence)
    this.queue.admit(sequence)
    sequence.status = 'prefilling'
    sequence.prefillEnd = sequence.length
    sequence.admittedAt = this.#now()
    sequence.filled = this.#restorePrefix(sequence, kvRow)
    this.prefixHitTokens += sequence.filled
    this.queue.charge(sequence.tenantId, (sequence.prefillEnd - sequence.filled) * PREFILL_TOKEN_COST)
    if (sequence.startedAt === undefined) {
      this.#start(sequence)
    }
  }

  /** The prompt is done. */
  startRunning(sequence: Sequence): void {
    this.savePrefix(sequence)
    this.rows.startRunning(sequence)
    sequence.status = 'running'
  }

  /** Running → waiting; its KV is kept as a prefix as far as there is room, the rest is run again. */
  preempt(sequence: Sequence): void {
    this.savePrefix(sequence)
    this.#giveBack(sequence)
    sequence.status = 'waiting'
    sequence.filled = 0
    this.queue.putBack(sequence)
    this.preemptions++
  }

  /** Every way a sequence ends goes through here. */
  end(sequence: Sequence, event: LastEvent): void {
    if (sequence.status === 'ended') {
      throw new Error(`sequence ${sequence.id} ends twice`)
    }
    if (event.kind === 'finished') {
      this.savePrefix(sequence)
    }
    if (sequence.status === 'waiting') {
      this.queue.remove(sequence)
    } else {
      this.#giveBack(sequence)
      this.queue.finish(sequence)
    }
    if (
      sequence.work.kind === 'generate' &&
      sequence.work.request.grammarId !== undefined &&
      sequence.startedAt !== undefined
    ) {
      this.#masks?.end(sequence.id)
    }
    sequence.status = 'ended'
    sequence.heldLogits = undefined
    this.#sequences.delete(sequence.id)
    this.#ended++
    this.emit(event)
  }

  fail(sequence: Sequence, error: RingletError): void {
    this.end(sequence, failedEvent(sequence.id, error))
  }

  /** How much of this sequence's prompt is known already, in tokens. */
  knownPrefix(sequence: Sequence): number {
    return reusesPrefix(sequence) ? this.prefixes.measure(sequence, sequence.length - 1) : 0
  }

  snapshot(): EngineSnapshot {
    return {
      maxRows: this.#runner.maxRows,
      runningRows: this.rows.runningCount,
      freeRows: this.rows.freeCount,
      rowOwners: this.rows.owners.map((owner) => owner?.id),
      sequences: this.all().map((sequence) => ({
        id: sequence.id,
        status: sequence.status,
        kvRow: sequence.kvRow,
        digest: sequence.adapter?.digest,
        adapterSlot: sequence.adapterSlot,
        holdsLease: sequence.releaseAdapter !== undefined,
        filled: sequence.filled,
        length: sequence.length,
        capacity: sequence.tokens.length,
      })),
      slots: this.slots.resident(),
      waiting: this.queue.size,
      submitted: this.#submitted,
      ended: this.#ended,
      prefixViolations: this.prefixes.violations(),
    }
  }

  savePrefix(sequence: Sequence): void {
    const { kvRow } = sequence
    if (kvRow !== undefined && sequence.work.kind === 'generate') {
      this.prefixes.add(sequence, sequence.filled, (start, end) => this.#runner.saveKv({ kvRow, start, end }))
    }
  }

  #start(sequence: Sequence): void {
    sequence.startedAt = sequence.admittedAt
    if (sequence.work.kind === 'generate') {
      const { grammarId, deliveredTokens } = sequence.work.request
      if (grammarId !== undefined) {
        this.#masks?.begin(sequence.id, grammarId, deliveredTokens)
      }
    }
    this.emit({
      kind: 'started',
      sequenceId: sequence.id,
      queuedMs: sequence.startedAt - sequence.submittedAt,
      cachedTokens: sequence.filled,
    })
  }

  #restorePrefix(sequence: Sequence, kvRow: number): number {
    if (!reusesPrefix(sequence)) {
      return 0
    }
    // At least one token has to run: the first draw needs its logits.
    const hit = this.prefixes.find(sequence, sequence.length - 1)
    for (const { snapshot, end } of hit.pieces) {
      this.#runner.restoreKv(kvRow, snapshot, end)
    }
    return hit.tokens
  }

  #giveBack(sequence: Sequence): void {
    this.rows.release(sequence)
    sequence.releaseAdapter?.()
    sequence.releaseAdapter = undefined
    sequence.adapterSlot = undefined
  }
}

export function failedEvent(sequenceId: string, error: RingletError): Extract<EngineEvent, { kind: 'failed' }> {
  const { code, message, retryAfterSeconds } = error
  const base = { kind: 'failed', sequenceId, code, message } as const
  return retryAfterSeconds === undefined ? base : { ...base, retryAfterSeconds }
}

/** Log-probabilities of a prompt need every token to run; hidden states too. */
function reusesPrefix({ work }: Sequence): boolean {
  return work.kind === 'generate' && work.promptLogprobs === undefined
}
