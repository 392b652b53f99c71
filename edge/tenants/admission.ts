/** A request's stay with its tenant's counters: admitted once, settled exactly once. */

import { RingletError } from '../../shared/errors.ts'
import type { EdgeServices } from '../app-types.ts'
import type { AdmissionAsk } from './limit-policy.ts'
import type { Used } from './tenant-counters.ts'
import type { TokenRecord } from './tenant-store.ts'

export interface Admission {
  /** What the tenant's limits leave for this request to generate. */
  maxNewTokens: number | undefined
  renew: () => Promise<void>
  /** Gives the reservation back and records what was used; further calls do nothing. */
  settle: (used: Used | undefined) => Promise<void>
}

export async function admitRequest(tenant: TokenRecord, ask: AdmissionAsk, services: EdgeServices): Promise<Admission> {
  const leaseId = crypto.randomUUID()
  const counters = () => services.counters(tenant.tenantId)
  const verdict = await counters().admit(leaseId, tenant.limits, ask)
  if (!verdict.admitted) {
    const { code, message, retryAfterSeconds } = verdict
    throw new RingletError(code, message, { retryAfterSeconds })
  }
  let settled = false
  return {
    maxNewTokens: verdict.maxNewTokens,
    renew: async () => {
      await counters().renew(leaseId, verdict.reservation)
    },
    settle: async (used) => {
      if (settled) {
        return
      }
      settled = true
      try {
        await counters().settle(leaseId, used)
      } catch {
        // Not tried again: it may have been written before the answer was lost. The line lets an operator correct it.
        services.log('usage_unconfirmed', { tenant: tenant.tenantId, leaseId, ...used })
      }
    },
  }
}
