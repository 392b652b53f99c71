/** Who is asking: a tenant by its token, or the operator by the admin token. */

import { LRUCache } from 'lru-cache'
import { RingletError } from '../../shared/errors.ts'
import type { TokenRecord } from '../tenants/tenant-store.ts'
import { checkInForce } from './in-force.ts'
import { equalBytes, hashToken, tokenKeyId } from './token.ts'

/** SHA-256 of nothing that is a token: compared with where there is no record, so that both ways take the same time. */
const NO_HASH = new Uint8Array(32)

const encoder = new TextEncoder()

export function requireToken(token: string | undefined): string {
  if (token === undefined) {
    throw new RingletError('token_missing', 'a token is needed: Authorization: Bearer <token>')
  }
  return token
}

/** The record of a valid token; throws `token_invalid` or `token_revoked`. */
export async function authenticateTenant(
  token: string,
  find: (keyId: string) => Promise<TokenRecord | undefined>,
  now: number,
): Promise<TokenRecord> {
  const keyId = tokenKeyId(token)
  if (keyId === undefined) {
    throw invalidToken()
  }
  const record = await find(keyId)
  if (!(await isTokenOf(token, keyId, record?.tokenHash ?? NO_HASH)) || record === undefined) {
    throw invalidToken()
  }
  checkInForce(record, now)
  return record
}

/**
 * Tokens that were found good, by key id, with the hash they matched: a busy one is hashed once an isolate, and after that
 * compared with itself, in constant time all the same. Whether it is still in force is asked of its record each time.
 */
const proven = new LRUCache<string, { token: Uint8Array; hash: Uint8Array }>({ max: 5_000 })

async function isTokenOf(text: string, keyId: string, wanted: Uint8Array): Promise<boolean> {
  const token = encoder.encode(text)
  const known = proven.get(keyId)
  if (known !== undefined && equalBytes(known.token, token) && equalBytes(known.hash, wanted)) {
    return true
  }
  const hash = await hashToken(text)
  if (!equalBytes(hash, wanted)) {
    return false
  }
  proven.set(keyId, { token, hash })
  return true
}

export async function isAdminToken(token: string, adminToken: string | undefined): Promise<boolean> {
  const [given, wanted] = await Promise.all([hashToken(token), hashToken(adminToken ?? '')])
  return equalBytes(given, wanted) && adminToken !== undefined
}

function invalidToken(): RingletError {
  return new RingletError('token_invalid', 'the token is not valid')
}
