/** A request's stay with its tenant's counters: admitted once, settled exactly once. */

import type { Limits } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import type { EdgeServices } from '../app-types.ts'
import { endsBehindRenewals } from './lease-order.ts'
import type { AdmissionAsk, LimitVerdict } from './limit-policy.ts'
import type { TokenRecord } from './tenant-store.ts'
import type { UsageReport } from './usage-table.ts'

export interface Admission {
  /** What the tenant's limits leave for this request to generate. */
  maxNewTokens: number | undefined
  renew: () => Promise<void>
  /** Gives the reservation back and records what was used; further calls do nothing. */
  settle: (used: UsageReport | undefined) => Promise<void>
}

export async function admitRequest(
  tenant: TokenRecord,
  ask: AdmissionAsk,
  services: EdgeServices,
  waitUntil: (work: Promise<unknown>) => void,
): Promise<Admission> {
  const { tenantId, limits } = tenant
  const admission = isCounted(limits) ? await admitCounted(tenant, ask, services) : admitUncounted()
  let settled = false
  return {
    ...admission,
    settle: async (used) => {
      if (!settled) {
        settled = true
        await admission.settle(used)
      }
    },
  }

  /** Nothing limits the tenant, so no request waits for its counters; usage goes there in groups. */
  function admitUncounted(): Admission {
    return {
      maxNewTokens: limits.maxNewTokens,
      renew: async () => {},
      settle: async (used) => {
        if (used !== undefined) {
          services.usageOutbox.add(tenantId, used, waitUntil)
        }
      },
    }
  }
}

function isCounted({ requestsPerMinute, tokensPerMinute, concurrentRequests, tokensPerMonth }: Limits): boolean {
  return [requestsPerMinute, tokensPerMinute, concurrentRequests, tokensPerMonth].some((limit) => limit !== undefined)
}

async function admitCounted(tenant: TokenRecord, ask: AdmissionAsk, services: EdgeServices): Promise<Admission> {
  const { tenantId, limits } = tenant
  const leaseId = crypto.randomUUID()
  const verdict = await askCounters(() => services.counters(tenantId).admit(leaseId, limits, ask))
  if (!verdict.admitted) {
    const { code, message, retryAfterSeconds } = verdict
    throw new RingletError(code, message, { retryAfterSeconds })
  }
  const lease = endsBehindRenewals<UsageReport | undefined>({
    renew: async () => {
      await services.counters(tenantId).renew(leaseId, verdict.reservation)
    },
    settle: async (used) => {
      try {
        await services.counters(tenantId).settle(leaseId, used)
      } catch {
        // Not tried again: it may have been written before the answer was lost. The line lets an operator correct it.
        services.log('usage_unconfirmed', { tenant: tenantId, leaseId, ...used })
      }
    },
  })
  return { ...lease, maxNewTokens: verdict.maxNewTokens }
}

/** A Durable Object that moves or restarts says so; the lease has one id, so that asking again holds one place. */
async function askCounters(decide: () => Promise<LimitVerdict>): Promise<LimitVerdict> {
  try {
    return await decide()
  } catch (error) {
    if (isRetryable(error)) {
      return decide()
    }
    throw error
  }
}

/** https://developers.cloudflare.com/durable-objects/best-practices/error-handling/ */
function isRetryable(error: unknown): boolean {
  return (
    error instanceof Error &&
    'retryable' in error &&
    error.retryable === true &&
    !('overloaded' in error && error.overloaded === true)
  )
}
