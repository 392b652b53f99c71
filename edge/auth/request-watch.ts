/**
 * Watches one request while it runs: ends it when its token is revoked, and keeps its lease on the tenant's counters alive.
 * Cheap: one timer a request; the token's record comes from the isolate's memory, so all streams of a token cost one
 * database read each two seconds.
 */

import { checkInForce, type TokenValidity } from './in-force.ts'

/** With the greatest age of a remembered record this stays below the 5 s within which a revocation counts. */
const CHECK_INTERVAL_MS = 2_000
const RECORD_AGE_MS = 2_000
const RENEW_EVERY_CHECKS = 10

export interface WatchOptions {
  keyId: string
  findWithin: (keyId: string, maxAgeMs: number) => Promise<TokenValidity | undefined>
  renewLease: () => Promise<void>
  now: () => number
  /** Given the error with which the request ends. */
  end: (error: unknown) => void
}

/** Returns its stop. */
export function watchRequest(options: WatchOptions): () => void {
  let checks = 0
  let stopped = false
  const timer = setInterval(() => {
    checks++
    void check(checks % RENEW_EVERY_CHECKS === 0)
  }, CHECK_INTERVAL_MS)

  async function check(renew: boolean): Promise<void> {
    let record: TokenValidity | undefined
    try {
      record = await options.findWithin(options.keyId, RECORD_AGE_MS)
      // A request that ended meanwhile has given its lease back; renewing would bring it to life again.
      if (renew && !stopped) {
        await options.renewLease()
      }
    } catch {
      // The database or the counters did not answer; the next check asks again. Nobody's stream breaks because of that.
      return
    }
    try {
      checkInForce(record, options.now())
    } catch (error) {
      clearInterval(timer)
      options.end(error)
    }
  }

  return () => {
    stopped = true
    clearInterval(timer)
  }
}
