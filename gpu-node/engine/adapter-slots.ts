/**
 * Which adapter is in which slot of the runner, by digest. A leased or pinned adapter stays; of the others the least recently
 * used one makes room.
 */

import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { ModelRunner } from './engine-types.ts'

interface SlotState {
  digest: string
  bytes: number
  /** Sequences that prefill or run with it. */
  leases: number
  pinned: boolean
  /** Order of last use. */
  used: number
}

export interface AdapterLease {
  adapterSlot: number
  release: () => void
}

export interface ResidentView {
  adapterSlot: number
  digest: string
  bytes: number
  leases: number
  pinned: boolean
}

export class AdapterSlots {
  readonly #runner: ModelRunner
  readonly #slots: (SlotState | undefined)[]
  /** Slots kept for an adapter that was passed over for too long: digest to slot. No new leases on what lies there now. */
  readonly #kept = new Map<string, number>()
  #uses = 0

  constructor(runner: ModelRunner) {
    this.#runner = runner
    this.#slots = new Array(runner.adapterSlots).fill(undefined)
  }

  resident(): ResidentView[] {
    return this.#slots.flatMap((slot, adapterSlot) => {
      if (slot === undefined) {
        return []
      }
      const { digest, bytes, leases, pinned } = slot
      return [{ adapterSlot, digest, bytes, leases, pinned }]
    })
  }

  isResident(digest: string): boolean {
    return this.#find(digest) !== undefined
  }

  /** What a lease on this adapter would take now. */
  availability(digest: string): 'resident' | 'needs_load' | 'no_slot' {
    const at = this.#find(digest)
    if (at !== undefined) {
      return this.#keptForOther(at, digest) ? 'no_slot' : 'resident'
    }
    return this.#placeFor(digest) === undefined ? 'no_slot' : 'needs_load'
  }

  /** The caller has seen that the adapter is available; loads it where it is not resident. Throws what the runner throws. */
  lease(adapter: PackedAdapter): AdapterLease {
    const adapterSlot = this.#find(adapter.digest) ?? this.#load(adapter)
    const slot = this.#slots[adapterSlot] as SlotState
    slot.leases++
    slot.used = ++this.#uses
    let released = false
    return {
      adapterSlot,
      release: () => {
        if (!released) {
          released = true
          slot.leases--
        }
      },
    }
  }

  /** Loads ahead of need; false when no slot is free or idle. */
  preload(adapter: PackedAdapter): boolean {
    if (this.isResident(adapter.digest)) {
      return true
    }
    if (this.#placeFor(adapter.digest) === undefined) {
      return false
    }
    this.#load(adapter)
    return true
  }

  /** At least one slot stays for adapters that are not pinned. */
  pin(adapter: PackedAdapter): void {
    const others = this.resident().filter((slot) => slot.pinned && slot.digest !== adapter.digest)
    if (others.length >= this.#slots.length - 1) {
      const limit = Math.max(0, this.#slots.length - 1)
      throw new RingletError('adapter_capacity', `${others.length} adapters are pinned; at most ${limit} can be`)
    }
    if (!this.preload(adapter)) {
      throw new RingletError('adapter_capacity', `all ${this.#slots.length} adapter slots are in use`)
    }
    const slot = this.#slots[this.#find(adapter.digest) as number] as SlotState
    slot.pinned = true
  }

  unpin(digest: string): void {
    const at = this.#find(digest)
    if (at !== undefined) {
      ;(this.#slots[at] as SlotState).pinned = false
    }
  }

  /** Frees the slot unless a sequence uses it. */
  unload(digest: string): void {
    const at = this.#find(digest)
    if (at !== undefined && this.#slots[at]?.leases === 0) {
      this.#empty(at)
    }
  }

  /** Keeps the slot that is nearest to being free for this adapter. Nothing happens when every slot is pinned or kept. */
  keepSlotFor(digest: string): void {
    if (this.#kept.has(digest)) {
      return
    }
    let best: number | undefined
    for (const [at, slot] of this.#slots.entries()) {
      const leases = slot?.leases ?? 0
      if (slot?.pinned !== true && !this.#keptForOther(at, digest) && leases < this.#leasesAt(best)) {
        best = at
      }
    }
    if (best !== undefined) {
      this.#kept.set(digest, best)
    }
  }

  /** Gives up slots kept for adapters that nobody waits for any more. */
  dropKept(stillWanted: (digest: string) => boolean): void {
    for (const digest of this.#kept.keys()) {
      if (!stillWanted(digest)) {
        this.#kept.delete(digest)
      }
    }
  }

  #find(digest: string): number | undefined {
    const at = this.#slots.findIndex((slot) => slot?.digest === digest)
    return at < 0 ? undefined : at
  }

  #leasesAt(at: number | undefined): number {
    return at === undefined ? Number.POSITIVE_INFINITY : (this.#slots[at]?.leases ?? 0)
  }

  #keptForOther(at: number, digest: string): boolean {
    for (const [wanted, kept] of this.#kept) {
      if (kept === at && wanted !== digest) {
        return true
      }
    }
    return false
  }

  /** A slot to load `digest` into: an empty one, else the least recently used that is neither leased, pinned nor kept. */
  #placeFor(digest: string): number | undefined {
    let place: number | undefined
    let oldest = Number.POSITIVE_INFINITY
    for (const [at, slot] of this.#slots.entries()) {
      if (this.#keptForOther(at, digest) || (slot !== undefined && (slot.leases > 0 || slot.pinned))) {
        continue
      }
      const used = slot?.used ?? -1
      if (used < oldest) {
        oldest = used
        place = at
      }
    }
    return place
  }

  #load(adapter: PackedAdapter): number {
    const at = this.#placeFor(adapter.digest)
    if (at === undefined) {
      throw new Error(`no slot for adapter ${adapter.digest}`)
    }
    if (this.#slots[at] !== undefined) {
      this.#empty(at)
    }
    this.#runner.loadAdapter(at, adapter)
    this.#slots[at] = { digest: adapter.digest, bytes: adapter.bytes, leases: 0, pinned: false, used: ++this.#uses }
    this.#kept.delete(adapter.digest)
    return at
  }

  #empty(at: number): void {
    this.#slots[at] = undefined
    this.#runner.unloadAdapter(at)
  }
}
