/** Who is asking: a tenant by its token, or the operator by the admin token. */

import { RingletError } from '../../shared/errors.ts'
import type { TokenRecord } from '../tenants/tenant-store.ts'
import { equalHashes, hashToken, tokenKeyId } from './token.ts'

/** SHA-256 of nothing that is a token: compared with where there is no record, so that both ways take the same time. */
const NO_HASH = '0'.repeat(64)

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
  const [record, hash] = await Promise.all([find(keyId), hashToken(token)])
  if (!equalHashes(hash, record?.tokenHash ?? NO_HASH) || record === undefined) {
    throw invalidToken()
  }
  checkInForce(record, now)
  return record
}

/** Also asked again and again while a stream is running. */
export function checkInForce(record: TokenRecord | undefined, now: number): asserts record is TokenRecord {
  if (record === undefined || record.revokedAt !== undefined || record.disabled) {
    throw new RingletError('token_revoked', 'the token has been revoked')
  }
  if (record.expiresAt !== undefined && record.expiresAt <= now) {
    throw new RingletError('token_revoked', 'the token has expired')
  }
}

export async function isAdminToken(token: string, adminToken: string | undefined): Promise<boolean> {
  const [given, wanted] = await Promise.all([hashToken(token), hashToken(adminToken ?? '')])
  return equalHashes(given, wanted) && adminToken !== undefined
}

function invalidToken(): RingletError {
  return new RingletError('token_invalid', 'the token is not valid')
}
