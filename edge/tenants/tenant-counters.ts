/**
 * The Durable Object of one tenant: alone owns its counters, so that limits hold over all isolates and regions. Decisions
 * are made in memory; usage is written in groups, because each write holds back every answer until it is on disk.
 */

import { DurableObject } from 'cloudflare:workers'
import type { Limits } from '../../shared/edge-api.ts'
import {
  type AdmissionAsk,
  addTokens,
  admitOnce,
  createTenantLoad,
  type LimitVerdict,
  monthOf,
  type Reservation,
  renewLease,
  settle,
  type TenantLoad,
} from './limit-policy.ts'
import { addToMinute, type SlidingMinute } from './sliding-minute.ts'
import { addUsage, createUsageTable, type UsageEntry, type UsageReport } from './usage-table.ts'

/** How long usage may wait for company before it is written. */
const WRITE_DELAY_MS = 500
/** Key of the minute counters in the object's storage; they outlive an idle object's eviction. */
const MINUTES_KEY = 'minutes'

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
    return admitOnce(this.#load, leaseId, limits, ask, Date.now())
  }

  renew(leaseId: string, reservation: Reservation): void {
    renewLease(this.#load, leaseId, reservation, Date.now())
  }

  /** A request has ended; `used` is absent when no node began it. Resolves when the usage is on disk. */
  async settle(leaseId: string, used: UsageReport | undefined): Promise<void> {
    const tokens = used === undefined ? 0 : used.promptTokens + used.generatedTokens
    settle(this.#load, leaseId, tokens, Date.now())
    if (used !== undefined) {
      await this.#note([used])
    }
  }

  /** Requests that needed no admission, because nothing limits their tenant. Resolves when the usage is on disk. */
  async record(reports: readonly UsageReport[]): Promise<void> {
    const now = Date.now()
    for (const { requests, promptTokens, generatedTokens } of reports) {
      // Counted all the same: limits that are set later find what was used before.
      addToMinute(this.#load.requests, now, requests)
      addTokens(this.#load, promptTokens + generatedTokens, now)
    }
    await this.#note(reports)
  }

  usage(fromDay: string, toDay: string): UsageEntry[] {
    this.#writeNow()
    return this.#usage.between(fromDay, toDay)
  }

  #note(reports: readonly UsageReport[]): Promise<void> {
    const day = new Date().toISOString().slice(0, 10)
    for (const report of reports) {
      const key = `${day}\0${report.adapter}`
      const entry = this.#unwritten.get(key)
      if (entry === undefined) {
        this.#unwritten.set(key, { ...report, day })
      } else {
        addUsage(entry, report)
      }
    }
    this.#write ??= this.#writeSoon()
    return this.#write
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
