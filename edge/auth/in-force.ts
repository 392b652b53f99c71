/** Is a token in force? Asked at a request's start, and again and again while it runs. Pure. */

import { RingletError } from '../../shared/errors.ts'

/** Unix milliseconds. */
export interface TokenValidity {
  disabled: boolean
  expiresAt: number | undefined
  revokedAt: number | undefined
}

/** Throws `token_revoked`. */
export function checkInForce(record: TokenValidity | undefined, now: number): void {
  if (record === undefined || record.revokedAt !== undefined || record.disabled) {
    throw new RingletError('token_revoked', 'the token has been revoked')
  }
  if (record.expiresAt !== undefined && record.expiresAt <= now) {
    throw new RingletError('token_revoked', 'the token has expired')
  }
}
