/**
 * The node's adapters as the HTTP side sees them: acquire one and get a lease; prefetch, pin, unload, list.
 * The store owns the disk and RAM tiers; the engine owns its slots and tells which digests they hold.
 */

import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import type { AdapterTier } from '../../shared/fleet.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'

/** One adapter or several merged; the base model needs no adapter. */
export type AdaptedSelection = Exclude<AdapterSelection, { kind: 'base' }>

/**
 * Tokens for the adapters' homes, by `formatAdapterRef` of the ref (with or without its revision), or `*` for all.
 * A token is used only to fetch what its own caller asked for.
 */
export type AdapterTokens = Readonly<Record<string, string>>

export type LoadProgress =
  | { phase: 'resolve'; ref: string }
  | { phase: 'download'; ref: string; receivedBytes: number; totalBytes: number }
  | { phase: 'load'; ref: string }

export interface AcquireOptions {
  /** Whose load it is: tenants take turns for loader capacity and are evicted by share. */
  tenantId: string
  tokens: AdapterTokens
  /** The caller left: its wait ends with the signal's reason; a load that others wait for goes on. */
  signal?: AbortSignal
  onProgress?: (progress: LoadProgress) => void
}

/** An adapter in use. It stays in RAM until `release` is called; calling it again does nothing. */
export interface AdapterLease {
  digest: string
  rank: number
  /** Of the packed form in RAM. */
  bytes: number
  /** Where it was when it was asked for; a merge says where the result was, or the farthest of its parts. */
  cacheTier: AdapterTier
  /** `formatAdapterRef` of each adapter with its exact revision, in the order of the selection. */
  refs: string[]
  packed: PackedAdapter
  /** From `acquire` to the lease. */
  loadMs: number
  release(): void
}

export interface AdapterListing {
  /** `formatAdapterRef` with the exact revision, or a merge's `selectionKey` over exact refs: as in heartbeats. */
  ref: string
  /** All names under which this content is known here; `ref` is the one used last. */
  refs: string[]
  digest: string
  rank: number
  /** Packed bytes in RAM, or file bytes where it is on disk only. */
  bytes: number
  tier: AdapterTier
  leases: number
  pinned: boolean
  /** Unix ms. */
  lastUsed: number
}

export interface AdapterStore {
  /**
   * The selection is trusted (the edge verified it for this caller); a revision that is not exact is resolved with the
   * caller's own token. Throws `RingletError`: adapter_not_found, adapter_refused, adapter_too_large, adapter_not_ready,
   * adapter_home_unreachable, adapter_capacity, merge_invalid, field_invalid.
   */
  acquire(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterLease>
  /** As `acquire` without a lease. */
  prefetch(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterListing>
  /** Loads it and keeps it in RAM and on disk until `unpin`, over restarts too. */
  pin(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterListing>
  /** By digest or by any of its refs; throws adapter_not_found. */
  unpin(name: string): Promise<AdapterListing>
  /** Forgets it in RAM and on disk; throws `conflict` while it is leased or pinned. */
  unload(name: string): Promise<AdapterListing>
  list(): AdapterListing[]
  /** Ends loads in flight; leases held stay valid. */
  close(): Promise<void>
}
