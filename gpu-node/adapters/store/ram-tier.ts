/** Packed adapters in memory, within a budget of bytes. An entry with leases or a pin stays. */

import { RingletError } from '../../../shared/errors.ts'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { chooseVictims } from './eviction.ts'

export interface RamEntry {
  readonly packed: PackedAdapter
  leases: number
  lastUsed: number
  tenantId: string
}

export interface RamTierOptions {
  budgetBytes: number
  staleAfterMs: number
  now: () => number
  isPinned: (digest: string) => boolean
  /** Called after an entry has left. */
  onEvict: (digest: string) => void
}

export class RamTier {
  readonly #options: RamTierOptions
  readonly #entries = new Map<string, RamEntry>()
  /** Sum of the entries' bytes; at most the budget. */
  #usedBytes = 0

  constructor(options: RamTierOptions) {
    this.#options = options
  }

  get usedBytes(): number {
    return this.#usedBytes
  }

  get(digest: string): RamEntry | undefined {
    return this.#entries.get(digest)
  }

  entries(): IterableIterator<[string, RamEntry]> {
    return this.#entries.entries()
  }

  /** `undefined`: not here. The release works once. */
  lease(digest: string, tenantId: string): { entry: RamEntry; release: () => void } | undefined {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return undefined
    }
    entry.leases++
    entry.lastUsed = this.#options.now()
    entry.tenantId = tenantId
    let held = true
    const release = () => {
      if (held) {
        held = false
        entry.leases--
        entry.lastUsed = this.#options.now()
      }
    }
    return { entry, release }
  }

  /** Makes room and puts it in. Throws adapter_too_large or adapter_capacity, then with nothing evicted. */
  insert(packed: PackedAdapter, tenantId: string): RamEntry {
    const known = this.#entries.get(packed.digest)
    if (known !== undefined) {
      return known
    }
    const { budgetBytes, now } = this.#options
    if (packed.bytes > budgetBytes) {
      const sizes = `${packed.bytes} bytes in memory; the node's limit is ${budgetBytes}`
      throw new RingletError('adapter_too_large', `the adapter needs ${sizes}`)
    }
    const victims = chooseVictims(this.#evictable(), {
      budgetBytes,
      bytes: packed.bytes,
      tenantId,
      now: now(),
      staleAfterMs: this.#options.staleAfterMs,
    })
    if (victims === undefined) {
      throw new RingletError('adapter_capacity', 'all adapters in this node’s memory are in use', {
        retryAfterSeconds: 1,
      })
    }
    for (const digest of victims) {
      this.remove(digest)
    }
    const entry: RamEntry = { packed, leases: 0, lastUsed: now(), tenantId }
    this.#entries.set(packed.digest, entry)
    this.#usedBytes += packed.bytes
    return entry
  }

  remove(digest: string): void {
    const entry = this.#entries.get(digest)
    if (entry !== undefined) {
      this.#entries.delete(digest)
      this.#usedBytes -= entry.packed.bytes
      this.#options.onEvict(digest)
    }
  }

  /** All violations of what must hold; none in a healthy tier. */
  violations(): string[] {
    const sum = [...this.#entries.values()].reduce((total, entry) => total + entry.packed.bytes, 0)
    const found: string[] = []
    if (sum !== this.#usedBytes) {
      found.push(`the entries have ${sum} bytes, counted are ${this.#usedBytes}`)
    }
    if (sum > this.#options.budgetBytes) {
      found.push(`${sum} bytes are beyond the budget of ${this.#options.budgetBytes}`)
    }
    for (const [digest, entry] of this.#entries) {
      if (entry.leases < 0) {
        found.push(`${digest} has ${entry.leases} leases`)
      }
    }
    return found
  }

  #evictable() {
    return [...this.#entries].map(([key, entry]) => ({
      key,
      bytes: entry.packed.bytes,
      lastUsed: entry.lastUsed,
      tenantId: entry.tenantId,
      held: entry.leases > 0 || this.#options.isPinned(key),
    }))
  }
}
