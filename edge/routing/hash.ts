/** The 32-bit hashes of placement: FNV-1a over text, finished by MurmurHash3's fmix32. Not for security; see `keyHash`. */

const FNV_OFFSET = 0x811c9dc5
const FNV_PRIME = 0x01000193

/** FNV-1a over UTF-16 code units, low byte first; the high byte only where there is one. */
export function fnv1a32(text: string, state: number = FNV_OFFSET): number {
  let hash = state
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i)
    hash = Math.imul(hash ^ (unit & 0xff), FNV_PRIME)
    if (unit > 0xff) {
      hash = Math.imul(hash ^ (unit >>> 8), FNV_PRIME)
    }
  }
  return hash >>> 0
}

/** MurmurHash3's finaliser: FNV-1a alone leaves the high bits of short, similar names too much alike. */
export function fmix32(value: number): number {
  let hash = value
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

/**
 * Where a key stands on the ring. The secret is hashed first, so that a tenant who picks adapter ids can't tell which of
 * them meet on one node; what a lucky guess could do is bounded by the load bound.
 */
export function keyHash(key: string, secret: string): number {
  return fmix32(fnv1a32(key, fnv1a32(`${secret}\0`)))
}

export function nodeHash(nodeId: string): number {
  return fmix32(fnv1a32(nodeId))
}

/** Rendezvous score of a node for a key, in [0, 2^32). */
export function rendezvousScore(key: number, node: number): number {
  return fmix32(key ^ node)
}

/** What residency is matched by: the hash of a ref's spelling or a merge's key. Two of 1,000 clash once in about 10^4 nodes. */
export function residentHash(ref: string): number {
  return fmix32(fnv1a32(ref))
}
