/** Each tenant's salt for prefix reuse on the nodes: from its id and a secret, so that no tenant can name another's. */

import { LRUCache } from 'lru-cache'
import { toHex } from '../hex.ts'

/** Hex. */
export function createCacheSalts(secret: string): (tenantId: string) => Promise<string> {
  const known = new LRUCache<string, string>({ max: 10_000 })
  const encoder = new TextEncoder()
  return async (tenantId) => {
    const remembered = known.get(tenantId)
    if (remembered !== undefined) {
      return remembered
    }
    const algorithm = { name: 'HMAC', hash: 'SHA-256' }
    const key = await crypto.subtle.importKey('raw', encoder.encode(secret), algorithm, false, ['sign'])
    const code = new Uint8Array(await crypto.subtle.sign('HMAC', key, encoder.encode(`prefix-salt\0${tenantId}`)))
    const salt = toHex(code.subarray(0, 16))
    known.set(tenantId, salt)
    return salt
  }
}
