/** Who gets a KV row next, and who gives one up. Pure: the engine acts on the answers. */

import type { Sequence } from './sequence.ts'

export interface AdmissionView {
  availability(digest: string): 'resident' | 'needs_load' | 'no_slot'
  /** Loading is rationed: it takes time away from running streams. */
  mayLoad: boolean
  /** A prompt that is being run will soon leave most of this one's prefix behind: better wait for it. */
  awaitsPrefix(sequence: Sequence): boolean
}

export interface AdmissionChoice {
  next: Sequence | undefined
  /** Passed over because every adapter slot is leased, pinned or kept. */
  withoutSlot: Sequence[]
}

/** The first of `candidates` that can start. Those that cannot wait without blocking the others. */
export function chooseAdmission(candidates: Iterable<Sequence>, view: AdmissionView): AdmissionChoice {
  const withoutSlot: Sequence[] = []
  for (const sequence of candidates) {
    const availability = sequence.adapter === undefined ? 'resident' : view.availability(sequence.adapter.digest)
    if (availability === 'no_slot') {
      withoutSlot.push(sequence)
    } else if ((availability === 'resident' || view.mayLoad) && !view.awaitsPrefix(sequence)) {
      return { next: sequence, withoutSlot }
    }
  }
  return { next: undefined, withoutSlot }
}

export interface TenantShare {
  tenantId: string
  waiting: readonly Sequence[]
  /** Sequences that have a KV row. */
  served: number
  /** Work charged. */
  counter: number
}

export interface PreemptionView {
  maxRows: number
  preemptAfterMs: number
  now: number
  /** Only the row is missing. */
  canStart(sequence: Sequence): boolean
}

/**
 * With no row free: which running sequence goes back to waiting, so that a tenant below its share of rows, and with less work
 * done for it, is not kept waiting by one above. Of the tenant furthest above, the sequence that started last.
 */
export function choosePreemption(
  tenants: readonly TenantShare[],
  running: readonly Sequence[],
  { maxRows, preemptAfterMs, now, canStart }: PreemptionView,
): Sequence | undefined {
  const share = Math.max(1, Math.floor(maxRows / tenants.length))
  const [furthest] = tenants.filter((tenant) => tenant.served > share).sort((a, b) => b.served - a.served)
  if (furthest === undefined) {
    return undefined
  }
  const isDue = (sequence: Sequence) => now - sequence.submittedAt > preemptAfterMs && canStart(sequence)
  const below = tenants.filter((tenant) => tenant.served < share && tenant.counter < furthest.counter)
  if (!below.some((tenant) => tenant.waiting.some(isDue))) {
    return undefined
  }
  const preemptible = running.filter(
    (sequence) => sequence.tenantId === furthest.tenantId && sequence.heldLogits === undefined,
  )
  return preemptible.sort((a, b) => (b.startedAt ?? 0) - (a.startedAt ?? 0))[0]
}
