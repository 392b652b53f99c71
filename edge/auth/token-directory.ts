/**
 * Tokens by key id, with a memory of seconds per isolate. Whoever asks states the greatest age that an answer may have, so
 * that a revocation counts everywhere within `MAX_TOKEN_AGE_MS`.
 */

import { createRenewedMemory, type RenewedMemory } from '../renewed-memory.ts'
import type { TenantStore, TokenRecord } from '../tenants/tenant-store.ts'

/** Older answers are not used: a revoked token is refused at most this long after its revocation. */
export const MAX_TOKEN_AGE_MS = 4_500
/** Older answers are used and renewed meanwhile, so that busy tokens never wait for the database. */
const RENEW_AGE_MS = 2_000
/** Key ids that do not exist are remembered too, or guessing would reach the database every time. */
const MAX_REMEMBERED = 20_000

export type TokenDirectory = RenewedMemory<TokenRecord>

export function createTokenDirectory(store: TenantStore, now: () => number): TokenDirectory {
  return createRenewedMemory({
    read: store.findToken,
    now,
    renewAgeMs: RENEW_AGE_MS,
    mostAgeMs: MAX_TOKEN_AGE_MS,
    mostEntries: MAX_REMEMBERED,
  })
}
