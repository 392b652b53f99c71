/**
 * How the edge hands its ticket keys to a node that knows only the join secret: AES-256-GCM under a key that HKDF-SHA256
 * (RFC 5869) derives from that secret, so that nothing between edge and node can read them.
 */

import { fromBase64Url, toBase64Url } from './base64url.ts'
import { RingletError } from './errors.ts'
import { type SigningKeys, signText } from './hmac.ts'

const IV_BYTES = 12

/** Tells two lists of keys apart and gives nothing of them away. */
export async function keysVersion(keys: SigningKeys, joinSecret: string): Promise<string> {
  return (await signText(JSON.stringify(keys.keys), joinSecret)).slice(0, 16)
}

export async function sealKeys(keys: SigningKeys, joinSecret: string): Promise<string> {
  const iv = crypto.getRandomValues(new Uint8Array(IV_BYTES))
  const plain = new TextEncoder().encode(JSON.stringify(keys.keys))
  const sealed = await crypto.subtle.encrypt({ name: 'AES-GCM', iv }, await deriveKey(joinSecret), plain)
  return `${toBase64Url(iv)}.${toBase64Url(new Uint8Array(sealed))}`
}

export async function openKeys(text: string, joinSecret: string): Promise<SigningKeys> {
  const [iv, sealed] = text.split('.').map(fromBase64Url)
  if (iv === undefined || sealed === undefined) {
    throw new RingletError('ticket_invalid', 'the sealed ticket keys are malformed')
  }
  try {
    const plain = await crypto.subtle.decrypt({ name: 'AES-GCM', iv }, await deriveKey(joinSecret), sealed)
    // Sealed by an edge that knows the join secret, so the type holds.
    return { keys: JSON.parse(new TextDecoder().decode(plain)) as SigningKeys['keys'] }
  } catch (cause) {
    throw new RingletError('ticket_invalid', 'the ticket keys are not sealed with this join secret', { cause })
  }
}

async function deriveKey(joinSecret: string) {
  const secret = await crypto.subtle.importKey('raw', new TextEncoder().encode(joinSecret), 'HKDF', false, [
    'deriveKey',
  ])
  const info = new TextEncoder().encode('ringlet ticket keys')
  const derivation = { name: 'HKDF', hash: 'SHA-256', salt: new Uint8Array(0), info }
  return crypto.subtle.deriveKey(derivation, secret, { name: 'AES-GCM', length: 256 }, false, ['encrypt', 'decrypt'])
}
