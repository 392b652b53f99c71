/**
 * Usage on its way to the tenants' counters, gathered per isolate: one call a tenant each second instead of one
 * a request. Holds plain numbers alone, because no request may wait for another's I/O; one of them carries all.
 */

import { addUsage, type UsageReport } from './usage-table.ts'

/** How long usage waits for company. Each delivery is a write, and on one machine the disk's answer holds up all requests for it. */
const GATHER_MS = 1_000
/** A carrier that has not delivered by then was cancelled; the next request takes over. */
const CARRIER_LOST_MS = 5_000

export interface UsageOutboxOptions {
  now: () => number
  send: (tenantId: string, reports: UsageReport[]) => Promise<void>
  /** Told of usage that could not be delivered, so that an operator can correct it. */
  onLost: (tenantId: string, report: UsageReport) => void
}

export interface UsageOutbox {
  /** `waitUntil` keeps the carrying request's context alive. */
  add: (tenantId: string, report: UsageReport, waitUntil: (work: Promise<unknown>) => void) => void
}

export function createUsageOutbox({ now, send, onLost }: UsageOutboxOptions): UsageOutbox {
  /** By tenant, then by adapter. */
  let gathered = new Map<string, Map<string, UsageReport>>()
  let carriedSince: number | undefined

  async function carry(): Promise<void> {
    await scheduler.wait(GATHER_MS)
    const parcel = gathered
    gathered = new Map()
    carriedSince = undefined
    await Promise.all(
      [...parcel].map(async ([tenantId, byAdapter]) => {
        const reports = [...byAdapter.values()]
        try {
          await send(tenantId, reports)
        } catch {
          // Not sent again: it may have been written before the answer was lost.
          for (const report of reports) {
            onLost(tenantId, report)
          }
        }
      }),
    )
  }

  return {
    add(tenantId, report, waitUntil) {
      const byAdapter = gathered.get(tenantId) ?? new Map<string, UsageReport>()
      gathered.set(tenantId, byAdapter)
      const sum = byAdapter.get(report.adapter)
      if (sum === undefined) {
        byAdapter.set(report.adapter, { ...report })
      } else {
        addUsage(sum, report)
      }
      if (carriedSince === undefined || now() - carriedSince > CARRIER_LOST_MS) {
        carriedSince = now()
        waitUntil(carry())
      }
    },
  }
}
