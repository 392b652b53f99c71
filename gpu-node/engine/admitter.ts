/** Gives KV rows and adapter leases to waiting sequences, and takes rows back for tenants below their share. */

import { RingletError } from '../../shared/errors.ts'
import { type AdmissionView, chooseAdmission, choosePreemption } from './admission.ts'
import type { EngineLimits } from './engine-limits.ts'
import { commonPrefix } from './prefix-cache.ts'
import { type Sequence, wantsPromptLogprobs } from './sequence.ts'
import type { SequenceTable } from './sequence-table.ts'

const MAX_RETRY_AFTER_S = 60

export type AdmissionResult =
  | { kind: 'done'; loaded: boolean }
  /** A sequence failed because its adapter could not be loaded. */
  | { kind: 'refused'; error: unknown }

export class Admitter {
  readonly #table: SequenceTable
  readonly #limits: EngineLimits
  readonly #maxRows: number
  #loadedLastTime = false
  #admittedAt: number | undefined
  #msBetweenAdmissions = 0

  constructor(table: SequenceTable, limits: EngineLimits, maxRows: number) {
    this.#table = table
    this.#limits = limits
    this.#maxRows = maxRows
  }

  /** Admits as many as can be; loads at most one adapter. */
  admit(now: number): AdmissionResult {
    this.#preempt(now)
    const { rows, queue, slots } = this.#table
    slots.dropKept((digest) => [...queue.inOrder()].some(({ adapter }) => adapter?.digest === digest))
    let loaded = false
    while (queue.size > 0 && rows.freeCount > 0 && rows.prefilling().length < this.#limits.maxPrefilling) {
      const { next, withoutSlot } = chooseAdmission(queue.inOrder(), this.#view(loaded))
      this.#keepSlots(withoutSlot, now)
      if (next === undefined) {
        break
      }
      const needsLoad = next.adapter !== undefined && !slots.isResident(next.adapter.digest)
      try {
        this.#table.admit(next)
      } catch (error) {
        if (next.status !== 'waiting') {
          throw error
        }
        this.#table.fail(next, loadError(error))
        return { kind: 'refused', error }
      }
      loaded ||= needsLoad
      this.#count(now)
    }
    this.#loadedLastTime = loaded
    return { kind: 'done', loaded }
  }

  /** Until everything that waits now has left the queue, at the present rate; 1 to 60. */
  retryAfterSeconds(): number {
    const seconds = Math.ceil((this.#table.queue.size * this.#msBetweenAdmissions) / 1000)
    return Math.min(MAX_RETRY_AFTER_S, Math.max(1, seconds))
  }

  #preempt(now: number): void {
    const { rows, queue, slots } = this.#table
    if (rows.freeCount > 0 || queue.size === 0) {
      return
    }
    const victim = choosePreemption(queue.shares(), rows.running(), {
      maxRows: this.#maxRows,
      preemptAfterMs: this.#limits.preemptAfterMs,
      now,
      canStart: ({ adapter }) => adapter === undefined || slots.availability(adapter.digest) !== 'no_slot',
    })
    if (victim !== undefined) {
      this.#table.preempt(victim)
    }
  }

  #view(loaded: boolean): AdmissionView {
    const { rows, slots } = this.#table
    const prefilling = rows.prefilling()
    // Loads and prompts take turns in the pause that running streams can bear.
    const promptsTurn = this.#loadedLastTime && rows.runningCount > 0 && prefilling.length > 0
    return {
      availability: (digest) => slots.availability(digest),
      mayLoad: !loaded && !promptsTurn,
      awaitsPrefix: (sequence) => this.#awaitsPrefix(sequence, prefilling),
    }
  }

  /** True when a prompt now being run will leave at least half of what this one would have to run. */
  #awaitsPrefix(sequence: Sequence, prefilling: readonly Sequence[]): boolean {
    const { prefixScope } = sequence
    const related = prefilling.filter((other) => other.prefixScope === prefixScope && other.work.kind === 'generate')
    if (related.length === 0 || this.#limits.prefixCacheBytes === 0 || wantsPromptLogprobs(sequence)) {
      return false
    }
    const known = this.#table.knownPrefix(sequence)
    const block = this.#limits.prefixBlock
    return related.some((other) => {
      const shared = commonPrefix(other.tokens, sequence.tokens, Math.min(other.prefillEnd, sequence.length - 1))
      const gain = Math.floor(shared / block) * block - known
      return gain > 0 && 2 * gain >= sequence.length - known
    })
  }

  #keepSlots(withoutSlot: readonly Sequence[], now: number): void {
    for (const sequence of withoutSlot) {
      sequence.withoutSlotSince ??= now
      if (sequence.adapter !== undefined && now - sequence.withoutSlotSince > this.#limits.maxPassedOverMs) {
        this.#table.slots.keepSlotFor(sequence.adapter.digest)
      }
    }
  }

  #count(now: number): void {
    if (this.#admittedAt !== undefined) {
      // Smoothed: the newest counts an eighth.
      this.#msBetweenAdmissions += (now - this.#admittedAt - this.#msBetweenAdmissions) / 8
    }
    this.#admittedAt = now
  }
}

/** Nobody else is concerned by an adapter that the model does not take. */
function loadError(error: unknown): RingletError {
  const isOurs = error instanceof RingletError
  return isOurs ? error : new RingletError('engine_failed', 'the adapter could not be loaded', { cause: error })
}
