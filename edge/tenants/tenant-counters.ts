/**
 * The Durable Object of one tenant: alone owns its counters, so that limits hold over all isolates and regions. Decisions
 * are made in memory; usage is written in groups, because each write holds back every answer until it is on disk.
 */

import { DurableObject } from 'cloudflare:workers'
import type { Limits } from '../../shared/edge-api.ts'
import {
  type AdmissionAsk,
  admit,
  createTenantLoad,
  decideAdmission,
  type LimitVerdict,
  monthOf,
  type Reservation,
  renewLease,
  settle,
  type TenantLoad,
} from './limit-policy.ts'
import type { SlidingMinute } from './sliding-minute.ts'
import { createUsageTable, type UsageEntry } from './usage-table.ts'

/** How long usage may wait for company before it is written. */
const WRITE_DELAY_MS = 200
/** Key of the minute counters in the object's storage; they outlive an idle object's eviction. */
const MINUTES_KEY = 'minutes'

/** What an ended request used; nothing is recorded of one that no node began. */
export interface Used {
  adapter: string
  promptTokens: number
  generatedTokens: number
}

export class TenantCounters extends DurableObject {
  readonly #usage: ReturnType<typeof createUsageTable>
  readonly #load: TenantLoad
  /** By day and adapter, not yet written. Counted in `#load` already. */
  readonly #unwritten = new Map<string, UsageEntry>()
  #write: Promise<void> | undefined

  constructor(ctx: DurableObjectState, env: object) {
    super(ctx, env)
    this.#usage = createUsageTable(ctx.storage.sql)
    const month = monthOf(Date.now())
    this.#load = createTenantLoad(month, this.#usage.monthTokens(month))
    const minutes = ctx.storage.kv.get<{ requests: SlidingMinute; tokens: SlidingMinute }>(MINUTES_KEY)
    if (minutes !== undefined) {
      this.#load.requests = minutes.requests
      this.#load.tokens = minutes.tokens
    }
  }

  /** An admitted request holds a lease until `settle`, or until it stops renewing it. */
  admit(leaseId: string, limits: Limits, ask: AdmissionAsk): LimitVerdict {
    const now = Date.now()
    const verdict = decideAdmission(this.#load, limits, ask, now)
    if (verdict.admitted) {
      admit(this.#load, leaseId, verdict.reservation, now)
    }
    return verdict
  }

  renew(leaseId: string, reservation: Reservation): void {
    renewLease(this.#load, leaseId, reservation, Date.now())
  }

  /** Resolves when the usage is on disk. */
  async settle(leaseId: string, used: Used | undefined): Promise<void> {
    const now = Date.now()
    settle(this.#load, leaseId, used === undefined ? 0 : used.promptTokens + used.generatedTokens, now)
    if (used === undefined) {
      return
    }
    const { adapter, promptTokens, generatedTokens } = used
    const day = new Date(now).toISOString().slice(0, 10)
    const key = `${day}\0${adapter}`
    const entry = this.#unwritten.get(key) ?? { adapter, day, requests: 0, promptTokens: 0, generatedTokens: 0 }
    entry.requests++
    entry.promptTokens += promptTokens
    entry.generatedTokens += generatedTokens
    this.#unwritten.set(key, entry)
    this.#write ??= this.#writeSoon()
    await this.#write
  }

  usage(fromDay: string, toDay: string): UsageEntry[] {
    this.#writeNow()
    return this.#usage.between(fromDay, toDay)
  }

  async #writeSoon(): Promise<void> {
    await scheduler.wait(WRITE_DELAY_MS)
    this.#write = undefined
    this.#writeNow()
    await this.ctx.storage.sync()
  }

  /** One transaction: without an await between them, writes of a Durable Object are atomic together. */
  #writeNow(): void {
    if (this.#unwritten.size === 0) {
      return
    }
    for (const entry of this.#unwritten.values()) {
      this.#usage.add(entry)
    }
    this.#unwritten.clear()
    this.ctx.storage.kv.put(MINUTES_KEY, { requests: this.#load.requests, tokens: this.#load.tokens })
  }
}
