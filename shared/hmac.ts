/** HMAC-SHA256 (RFC 2104) with named keys, by what both Workers and Node have: WebCrypto. Tickets and heartbeats use it. */

import { fromBase64Url, toBase64Url } from './base64url.ts'

/** Keys by id. The first signs; all verify, so that a secret can be rotated without downtime. */
export interface SigningKeys {
  keys: readonly { id: string; secret: string }[]
}

const encoder = new TextEncoder()

/** Base64url of the code over the text. */
export async function signText(text: string, secret: string): Promise<string> {
  const code = await crypto.subtle.sign('HMAC', await importKey(secret), encoder.encode(text))
  return toBase64Url(new Uint8Array(code))
}

/** In constant time: WebCrypto's verify compares so. `false` too when the code is no base64url. */
export async function verifyText(text: string, code: string, secret: string): Promise<boolean> {
  const given = fromBase64Url(code)
  if (given === undefined) {
    return false
  }
  return crypto.subtle.verify('HMAC', await importKey(secret), given, encoder.encode(text))
}

type ImportedKey = ReturnType<typeof crypto.subtle.importKey>

const imported = new Map<string, ImportedKey>()

/** Importing a key costs more than a signature; a process holds two or three. */
function importKey(secret: string): ImportedKey {
  const known = imported.get(secret)
  if (known !== undefined) {
    return known
  }
  const algorithm = { name: 'HMAC', hash: 'SHA-256' }
  const key = crypto.subtle.importKey('raw', encoder.encode(secret), algorithm, false, ['sign', 'verify'])
  imported.set(secret, key)
  return key
}
