/**
 * Who waits, and whose turn it is. Tenants share by virtual token counters (Sheng et al., "Fairness in serving large language
 * models", OSDI 2024): each is charged for the work done for it, the one charged least is served next, and one that comes
 * back after a pause starts level with the others: what it did not use is not saved up. Within a tenant: first come, first served.
 */

import { mayTakePlace } from '../waiting-share.ts'
import type { TenantShare } from './admission.ts'
import type { Sequence } from './sequence.ts'

/** What a token costs its tenant. A decoded token occupies a row for a whole step, which a prompt token shares with its chunk. */
export const PREFILL_TOKEN_COST = 1
export const DECODE_TOKEN_COST = 2

interface Tenant {
  /** Tokens charged, by their costs. */
  counter: number
  waiting: Sequence[]
  /** Sequences that have a KV row. */
  served: number
}

export class WaitingQueue {
  readonly #maxWaiting: number
  readonly #tenants = new Map<string, Tenant>()
  #waiting = 0
  /** Counter of the tenant that was served last; the level at which tenants start while nobody is active. */
  #level = 0

  constructor(maxWaiting: number) {
    this.#maxWaiting = maxWaiting
  }

  get size(): number {
    return this.#waiting
  }

  /** May this tenant queue one more? */
  hasPlaceFor(tenantId: string): boolean {
    const own = this.#tenants.get(tenantId)?.waiting.length ?? 0
    return mayTakePlace(own, this.#maxWaiting - this.#waiting)
  }

  add(sequence: Sequence): void {
    this.#tenant(sequence.tenantId).waiting.push(sequence)
    this.#waiting++
  }

  /** A preempted sequence waits again, before the tenant's others. */
  putBack(sequence: Sequence): void {
    const tenant = this.#tenant(sequence.tenantId)
    tenant.waiting.unshift(sequence)
    tenant.served--
    this.#waiting++
  }

  /** It ended while waiting. */
  remove(sequence: Sequence): void {
    const tenant = this.#tenant(sequence.tenantId)
    tenant.waiting.splice(tenant.waiting.indexOf(sequence), 1)
    this.#waiting--
    this.#forgetIdle()
  }

  /** It got a KV row. */
  admit(sequence: Sequence): void {
    const tenant = this.#tenant(sequence.tenantId)
    tenant.waiting.splice(tenant.waiting.indexOf(sequence), 1)
    tenant.served++
    this.#waiting--
    this.#level = tenant.counter
  }

  /** It ended after it had been admitted. */
  finish(sequence: Sequence): void {
    const tenant = this.#tenant(sequence.tenantId)
    tenant.served--
    this.#forgetIdle()
  }

  charge(tenantId: string, cost: number): void {
    this.#tenant(tenantId).counter += cost
  }

  /** Sequences in the order in which they should be admitted, were each tenant's counter to stay as it is. */
  *inOrder(): Generator<Sequence> {
    const tenants = [...this.#tenants.values()].filter((tenant) => tenant.waiting.length > 0)
    tenants.sort((a, b) => a.counter - b.counter)
    for (const tenant of tenants) {
      yield* [...tenant.waiting]
    }
  }

  /** The tenants that have sequences here. */
  shares(): TenantShare[] {
    const active = [...this.#tenants].filter(([, tenant]) => isActive(tenant))
    return active.map(([tenantId, tenant]) => ({ tenantId, ...tenant }))
  }

  #tenant(tenantId: string): Tenant {
    const known = this.#tenants.get(tenantId)
    if (known !== undefined) {
      this.#lift(known)
      return known
    }
    const tenant: Tenant = { counter: 0, waiting: [], served: 0 }
    this.#lift(tenant)
    this.#tenants.set(tenantId, tenant)
    return tenant
  }

  /** A tenant that becomes active starts at the level of the least served active one. */
  #lift(tenant: Tenant): void {
    if (isActive(tenant)) {
      return
    }
    let least = Number.POSITIVE_INFINITY
    for (const other of this.#tenants.values()) {
      if (isActive(other)) {
        least = Math.min(least, other.counter)
      }
    }
    tenant.counter = Math.max(tenant.counter, Number.isFinite(least) ? least : this.#level)
  }

  /** An idle tenant's debt is kept while the active ones are behind it; once nobody is active, all start level again. */
  #forgetIdle(): void {
    const tenants = [...this.#tenants.values()]
    const least = Math.min(...tenants.filter(isActive).map((tenant) => tenant.counter))
    for (const [tenantId, tenant] of this.#tenants) {
      if (!isActive(tenant) && tenant.counter <= least) {
        this.#tenants.delete(tenantId)
      }
    }
  }
}

function isActive(tenant: Tenant): boolean {
  return tenant.waiting.length + tenant.served > 0
}
