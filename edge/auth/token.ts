/** A token's text: `rl_<key id>_<secret>`; made, read, hashed and compared here. The key id finds it, the hash proves it. */

import { toBase64Url } from '../../shared/base64url.ts'

const TOKEN = /^rl_([a-z2-7]{16})_[A-Za-z0-9_-]{43}$/
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

export interface NewToken {
  keyId: string
  text: string
}

/** 80 bits name the key, 256 bits are its secret. */
export function createToken(): NewToken {
  const keyId = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => BASE32[byte & 31]).join('')
  const secret = toBase64Url(crypto.getRandomValues(new Uint8Array(32)))
  return { keyId, text: `rl_${keyId}_${secret}` }
}

/** The key id of a well-formed token. */
export function tokenKeyId(text: string): string | undefined {
  return TOKEN.exec(text)?.[1]
}

const encoder = new TextEncoder()

/** SHA-256. Tokens are random, so neither salt nor stretching adds anything. */
export async function hashToken(text: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest('SHA-256', encoder.encode(text)))
}

/** In a time that does not depend on where they differ. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.byteLength === b.byteLength && crypto.subtle.timingSafeEqual(a, b)
}

/** `Bearer <token>`, the scheme in any letter case (RFC 9110 §11.1). */
export function bearerToken(authorization: string | undefined): string | undefined {
  return /^bearer +([^\s]+) *$/i.exec(authorization ?? '')?.[1]
}
