/** Which content (digest) a place (content key) and an exact name hold, as far as this node has seen them. */

import { LRUCache } from 'lru-cache'

/** Bounded: a forgotten key costs a look at the adapter's home. */
const MAX_KEYS = 200_000

export class ContentIndex {
  readonly #digests = new LRUCache<string, string>({ max: MAX_KEYS })
  readonly #keys = new LRUCache<string, string>({ max: MAX_KEYS })
  /** Digest → names, the one used last at the end; only of content that a tier holds. */
  readonly #names = new Map<string, Set<string>>()

  digestOf(contentKey: string): string | undefined {
    return this.#digests.get(contentKey)
  }

  /** `name`: an exact ref, or in offline mode any ref that meant it when the hub was last asked. */
  keyOf(name: string): string | undefined {
    return this.#keys.get(name)
  }

  setDigest(contentKey: string, digest: string): void {
    this.#digests.set(contentKey, digest)
  }

  setKey(name: string, contentKey: string): void {
    this.#keys.set(name, contentKey)
  }

  dropKey(contentKey: string): void {
    this.#digests.delete(contentKey)
  }

  addName(digest: string, name: string): void {
    const names = this.#names.get(digest) ?? new Set()
    names.delete(name)
    names.add(name)
    this.#names.set(digest, names)
  }

  /** The one used last first. */
  names(digest: string): string[] {
    return [...(this.#names.get(digest) ?? [])].reverse()
  }

  digestByName(name: string): string | undefined {
    for (const [digest, names] of this.#names) {
      if (digest === name || names.has(name)) {
        return digest
      }
    }
    return undefined
  }

  /** No tier holds it any more. */
  forget(digest: string): void {
    this.#names.delete(digest)
  }
}
