/**
 * Tokens by key id, with a memory of seconds per isolate. Whoever asks states the greatest age that an answer may have, so
 * that a revocation counts everywhere within `MAX_TOKEN_AGE_MS`.
 */

import { LRUCache } from 'lru-cache'
import type { TenantStore, TokenRecord } from '../tenants/tenant-store.ts'

/** Older answers are not used: a revoked token is refused at most this long after its revocation. */
export const MAX_TOKEN_AGE_MS = 4_500
/** Older answers are used and renewed meanwhile, so that busy tokens never wait for the database. */
const RENEW_AGE_MS = 2_000
/** Key ids that do not exist are remembered too, or guessing would reach the database every time. */
const MAX_REMEMBERED = 20_000

interface Remembered {
  record: TokenRecord | undefined
  readAt: number
  renewing: boolean
}

export interface TokenDirectory {
  /** `defer` keeps the request's context alive for a renewal in the background. */
  find(keyId: string, defer: (work: Promise<unknown>) => void): Promise<TokenRecord | undefined>
  /** An answer no older than `maxAgeMs`. */
  findWithin(keyId: string, maxAgeMs: number): Promise<TokenRecord | undefined>
  /** After a change made here. */
  forget(keyId: string): void
}

export function createTokenDirectory(store: TenantStore, now: () => number): TokenDirectory {
  const remembered = new LRUCache<string, Remembered>({ max: MAX_REMEMBERED })

  async function read(keyId: string): Promise<TokenRecord | undefined> {
    const readAt = now()
    const record = await store.findToken(keyId)
    remembered.set(keyId, { record, readAt, renewing: false })
    return record
  }

  async function findWithin(keyId: string, maxAgeMs: number): Promise<TokenRecord | undefined> {
    const known = remembered.get(keyId)
    return known !== undefined && now() - known.readAt <= maxAgeMs ? known.record : read(keyId)
  }

  return {
    findWithin,
    forget: (keyId) => {
      remembered.delete(keyId)
    },
    find(keyId, defer) {
      const known = remembered.get(keyId)
      if (known !== undefined && !known.renewing && now() - known.readAt > RENEW_AGE_MS) {
        known.renewing = true
        // A failed renewal leaves the old answer, which then ages out and is read in the foreground.
        defer(
          read(keyId).catch(() => {
            known.renewing = false
          }),
        )
      }
      return findWithin(keyId, MAX_TOKEN_AGE_MS)
    },
  }
}
