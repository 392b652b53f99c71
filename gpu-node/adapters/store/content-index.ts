/** Which content (digest) a place (content key) and an exact name hold, as far as this node has seen them. */

import { LRUCache } from 'lru-cache'

/** Bounded: a forgotten key costs a look at the adapter's home. By size, as `max` would take room for all at once (11 MB). */
const BOUND = { maxSize: 200_000, sizeCalculation: () => 1 }

export class ContentIndex {
  readonly #digests = new LRUCache<string, string>(BOUND)
  readonly #keys = new LRUCache<string, string>(BOUND)
  /** Digest → names, the one used last at the end; only of content that a tier holds. */
  readonly #names = new Map<string, Set<string>>()
  /** A name belongs to the content that it meant last. */
  readonly #owners = new Map<string, string>()

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
    const owner = this.#owners.get(name)
    if (owner !== undefined && owner !== digest) {
      this.#names.get(owner)?.delete(name)
    }
    this.#owners.set(name, digest)
    const names = this.#names.get(digest) ?? new Set()
    names.delete(name)
    names.add(name)
    this.#names.set(digest, names)
  }

  /** The one used last first. */
  names(digest: string): string[] {
    return [...(this.#names.get(digest) ?? [])].reverse()
  }

  /** The digest of content that a tier holds under this name. */
  find(name: string): string | undefined {
    return this.#owners.get(name)
  }

  /** No tier holds it any more. */
  forget(digest: string): void {
    for (const name of this.#names.get(digest) ?? []) {
      this.#owners.delete(name)
    }
    this.#names.delete(digest)
  }
}
