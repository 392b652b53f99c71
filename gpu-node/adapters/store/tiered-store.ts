/** The adapter store over its tiers: leases for callers, pins, unloading, the list. */

import {
  type AdapterRef,
  type AdapterSelection,
  formatAdapterRef,
  selectionKey,
  selectionRefs,
} from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import { ADAPTER_TIERS, type AdapterTier } from '../../../shared/fleet.ts'
import { digestMerge } from '../adapter-digest.ts'
import type { AcquireOptions, AdaptedSelection, AdapterLease, AdapterListing, AdapterStore } from '../adapter-store.ts'
import { DamagedContentError } from '../loader/damaged-content.ts'
import { type MergeRecipe, toRecipe } from '../merge/merge-checks.ts'
import type { ContentIndex } from './content-index.ts'
import type { ContentLoader, Held, HeldFiles } from './content-loader.ts'
import type { DiskTier } from './disk-tier.ts'
import type { PackedTier } from './packed-tier.ts'
import type { Pin, Pins } from './pins.ts'
import type { RamTier } from './ram-tier.ts'
import type { Located, Resolver } from './resolver.ts'

export interface TieredStoreParts {
  ram: RamTier
  disk: DiskTier
  packed: PackedTier
  index: ContentIndex
  resolver: Resolver
  loader: ContentLoader
  pins: Pins
  engineResident: () => ReadonlySet<string>
  closeHomes: () => Promise<void>
  /** Last: until then the tiers may write. */
  releaseFolder: () => Promise<void>
}

type Merge = Extract<AdapterSelection, { kind: 'merge' }>

/** What a lease is made of. */
interface Acquired extends Held {
  refs: AdapterRef[]
  /** The listing's name. */
  name: string
}

/** Stored files may be damaged or evicted while they are asked for; each time there is less to go wrong. */
const ATTEMPTS = 3
/** Whose use a restored pin counts as. */
const OPERATOR = 'operator'

export class TieredStore implements AdapterStore {
  readonly #parts: TieredStoreParts
  #closed = false

  constructor(parts: TieredStoreParts) {
    this.#parts = parts
  }

  async acquire(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterLease> {
    const startedAt = performance.now()
    this.#checkOpen()
    options.signal?.throwIfAborted()
    const acquired =
      selection.kind === 'single'
        ? await this.#acquireOne(selection.ref, options)
        : await this.#acquireMerge(selection, options)
    this.#parts.index.addName(acquired.entry.packed.digest, acquired.name)
    return this.#toLease(acquired, startedAt)
  }

  #toLease({ entry, release, tier, refs }: Acquired, startedAt: number): AdapterLease {
    const { digest, rank, bytes } = entry.packed
    return {
      digest,
      rank,
      bytes,
      cacheTier: tier === 'ram' && this.#parts.engineResident().has(digest) ? 'engine' : tier,
      refs: refs.map((ref) => formatAdapterRef(ref)),
      packed: entry.packed,
      loadMs: performance.now() - startedAt,
      release,
    }
  }

  async prefetch(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterListing> {
    const lease = await this.acquire(selection, options)
    lease.release()
    return this.#listing(lease.digest)
  }

  async pin(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterListing> {
    return this.#pin(selection, options, true)
  }

  /** As `pin`, for as long as this process lives. */
  async pinForNow(selection: AdaptedSelection, options: AcquireOptions): Promise<AdapterListing> {
    return this.#pin(selection, options, false)
  }

  async unpin(name: string): Promise<AdapterListing> {
    const digest = this.#parts.pins.find(name) ?? this.#byName(name)
    await this.#parts.pins.remove(digest)
    return this.#listing(digest)
  }

  /** Content pinned before a restart, back in RAM; where no tier holds it any more, from its home as far as no token is needed. */
  async restore({ digest, selection }: Pin): Promise<AdapterLease> {
    const options = { tenantId: OPERATOR, tokens: {} }
    const held = await this.#parts.loader.holdKnown(digest, options)
    if (held !== undefined) {
      return this.#toLease(
        { ...held, refs: selectionRefs(selection), name: selectionKey(selection) },
        performance.now(),
      )
    }
    const lease = await this.acquire(selection, options)
    if (lease.digest !== digest) {
      lease.release()
      throw new RingletError('adapter_not_found', 'its home has other content now')
    }
    return lease
  }

  async unload(name: string): Promise<AdapterListing> {
    const digest = this.#byName(name)
    const listing = this.#listing(digest)
    const { ram, disk, packed, resolver } = this.#parts
    const leases = listing.leases + (disk.get(digest)?.leases ?? 0)
    if (listing.pinned || leases > 0) {
      const why = listing.pinned ? 'pinned' : `in use by ${leases} requests`
      throw new RingletError('conflict', `adapter ${listing.ref} is ${why}`)
    }
    ram.remove(digest)
    disk.remove(digest)
    // A packed file may be on its way.
    await packed.settle()
    await packed.remove(digest)
    resolver.forgetRefusals()
    await disk.settle()
    return { ...listing, tier: 'remote' }
  }

  list(): AdapterListing[] {
    const { ram, disk, packed, pins } = this.#parts
    const held = [ram, disk, packed].flatMap((tier) => [...tier.entries()].map(([digest]) => digest))
    const digests = new Set([...held, ...pins.all().map(({ digest }) => digest)])
    return [...digests].map((digest) => this.#listing(digest)).sort((a, b) => b.lastUsed - a.lastUsed)
  }

  async close(): Promise<void> {
    if (this.#closed) {
      return
    }
    this.#closed = true
    const reason = new RingletError('node_draining', 'the node is shutting down')
    this.#parts.resolver.abort(reason)
    this.#parts.loader.abort(reason)
    await this.#parts.closeHomes()
    await this.#parts.packed.settle()
    await this.#parts.disk.settle()
    await this.#parts.releaseFolder()
  }

  /** What must hold and does not; for tests and the idle check. */
  violations(): string[] {
    return [...this.#parts.ram.violations(), ...this.#parts.disk.violations()]
  }

  async #acquireOne(ref: AdapterRef, options: AcquireOptions): Promise<Acquired> {
    return this.#withLocated(ref, 'use', options, async (located) => {
      const held = await this.#parts.loader.hold(located, options)
      this.#noteNames(held.entry.packed.digest, ref, located)
      return { ...held, refs: [located.exact], name: formatAdapterRef(located.exact) }
    })
  }

  async #acquireMerge(selection: Merge, options: AcquireOptions): Promise<Acquired> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#mergeOnce(selection, options)
      } catch (error) {
        if (!(error instanceof DamagedContentError)) {
          throw error
        }
        if (attempt === ATTEMPTS) {
          throw leftMeanwhile(error)
        }
        for (const { ref } of selection.parts) {
          this.#parts.resolver.forget(ref, options)
        }
      }
    }
  }

  async #mergeOnce(selection: Merge, options: AcquireOptions): Promise<Acquired> {
    const { loader } = this.#parts
    const recipe = toRecipe(selection)
    const ready = await this.#knownMerge(selection, recipe, options)
    if (ready !== undefined) {
      return ready
    }
    const files = settled(await Promise.all(selection.parts.map(({ ref }) => this.#files(ref, options))))
    try {
      const digests = files.map((file) => file.digest)
      const refs = files.map((file) => file.exact)
      const digest = mergeDigest(recipe, digests)
      const known = await loader.holdKnown(digest, options)
      const held = known ?? { ...(await loader.holdMerge(digest, recipe, files, options)), tier: farthest(files) }
      return { ...held, refs, name: mergeName(selection, refs) }
    } finally {
      release(files)
    }
  }

  /** A merge whose parts are all known needs no file of theirs when its result is at hand. */
  async #knownMerge(selection: Merge, recipe: MergeRecipe, options: AcquireOptions): Promise<Acquired | undefined> {
    const { loader, index, resolver } = this.#parts
    const isKnown = (contentKey: string) => index.digestOf(contentKey) !== undefined
    const located = await Promise.all(selection.parts.map(({ ref }) => resolver.locate(ref, options, isKnown)))
    const digests = located.map(({ contentKey }) => index.digestOf(contentKey))
    if (digests.includes(undefined)) {
      return undefined
    }
    const known = await loader.holdKnown(mergeDigest(recipe, digests as string[]), options)
    const refs = located.map(({ exact }) => exact)
    return known && { ...known, refs, name: mergeName(selection, refs) }
  }

  /** Never rejects: the caller must release the parts that were found when another was not. */
  async #files(
    ref: AdapterRef,
    options: AcquireOptions,
  ): Promise<(HeldFiles & { exact: AdapterRef }) | { error: unknown }> {
    try {
      return await this.#withLocated(ref, 'files', options, async (located) => {
        const files = await this.#parts.loader.holdFiles(located, options)
        this.#noteNames(files.digest, ref, located)
        return { ...files, exact: located.exact }
      })
    } catch (error) {
      return { error }
    }
  }

  async #withLocated<T>(
    ref: AdapterRef,
    purpose: 'use' | 'files',
    options: AcquireOptions,
    use: (located: Located) => Promise<T>,
  ): Promise<T> {
    const { resolver, index } = this.#parts
    const held = (contentKey: string) => {
      const digest = index.digestOf(contentKey)
      return digest !== undefined && this.#isHeld(digest, purpose)
    }
    for (let attempt = 1; ; attempt++) {
      options.onProgress?.({ phase: 'resolve', ref: formatAdapterRef(ref) })
      const located = await resolver.locate(ref, options, held)
      try {
        return await use(located)
      } catch (error) {
        if (!(error instanceof DamagedContentError)) {
          resolver.rememberRefusal(ref, options, error)
          throw error
        }
        if (attempt === ATTEMPTS) {
          throw leftMeanwhile(error)
        }
        resolver.forget(ref, options)
      }
    }
  }

  /** To merge, an adapter's own files are needed; to use it, its packed form will do. */
  #isHeld(digest: string, purpose: 'use' | 'files'): boolean {
    const { ram, disk, packed } = this.#parts
    const asFiles = disk.get(digest) !== undefined
    return asFiles || (purpose === 'use' && (ram.get(digest) ?? packed.get(digest)) !== undefined)
  }

  /** Exact names mean this content for ever; the others until their home says otherwise. */
  #noteNames(digest: string, asked: AdapterRef, located: Located): void {
    const { index, disk } = this.#parts
    const names = [formatAdapterRef(located.exact)]
    const askedName = formatAdapterRef(asked)
    if (asked.source === 'hub' && askedName !== names[0]) {
      const earlier = index.keyOf(askedName)
      const former = earlier === undefined || earlier === located.contentKey ? undefined : index.digestOf(earlier)
      if (former !== undefined) {
        disk.dropName(former, askedName)
      }
      index.setKey(askedName, located.contentKey)
      names.push(askedName)
    }
    disk.addNames(digest, [located.contentKey], names)
    index.addName(digest, names[0]!)
  }

  async #pin(selection: AdaptedSelection, options: AcquireOptions, kept: boolean): Promise<AdapterListing> {
    const lease = await this.acquire(selection, options)
    try {
      await this.#parts.pins.add({ digest: lease.digest, selection }, kept)
    } finally {
      lease.release()
    }
    return this.#listing(lease.digest)
  }

  #byName(name: string): string {
    const { index } = this.#parts
    // A short name (without the exact revision) is known by the place that it meant last.
    const contentKey = index.keyOf(name)
    const byName = index.find(name) ?? (contentKey === undefined ? undefined : index.digestOf(contentKey))
    const digest = this.#isHeld(name, 'use') ? name : byName
    if (digest === undefined || !this.#isHeld(digest, 'use')) {
      throw new RingletError('adapter_not_found', 'this node does not hold that adapter')
    }
    return digest
  }

  #listing(digest: string): AdapterListing {
    const { ram, disk, packed, index, pins } = this.#parts
    const inRam = ram.get(digest)
    const files = disk.get(digest)
    const whole = packed.get(digest)
    const known = index.names(digest)
    const pin = pins.all().find((candidate) => candidate.digest === digest)
    // Pinned content that no tier holds yet is known by its pin alone.
    const refs = known.length > 0 || pin === undefined ? known : [selectionKey(pin.selection)]
    return {
      ref: refs[0] ?? digest,
      refs,
      digest,
      rank: inRam?.packed.rank ?? files?.manifest.rank ?? whole?.rank ?? 0,
      bytes: inRam?.packed.bytes ?? files?.bytes ?? whole?.bytes ?? 0,
      tier: this.#tier(digest, inRam !== undefined, files !== undefined || whole !== undefined),
      leases: inRam?.leases ?? 0,
      pinned: pin !== undefined,
      lastUsed: Math.max(...[inRam, files, whole].map((entry) => entry?.lastUsed ?? 0)),
    }
  }

  #tier(digest: string, inRam: boolean, onDisk: boolean): AdapterTier {
    if (inRam) {
      return this.#parts.engineResident().has(digest) ? 'engine' : 'ram'
    }
    return onDisk ? 'disk' : 'remote'
  }

  #checkOpen(): void {
    if (this.#closed) {
      throw new RingletError('node_draining', 'the node is shutting down')
    }
  }
}

function leftMeanwhile(cause: DamagedContentError): RingletError {
  const extras = { cause, retryAfterSeconds: 1 }
  return new RingletError('adapter_capacity', 'the adapter left this node or changed while it was asked for', extras)
}

function mergeDigest(recipe: MergeRecipe, digests: readonly string[]): string {
  const { strategy, weights, density, signMethod, seed } = recipe
  return digestMerge([strategy, weights, density, signMethod, seed, digests])
}

function mergeName(selection: Merge, refs: readonly AdapterRef[]): string {
  return selectionKey({ ...selection, parts: selection.parts.map(({ weight }, i) => ({ ref: refs[i]!, weight })) })
}

type Files = HeldFiles & { exact: AdapterRef }

/** All, or the first error after the others were released. */
function settled(found: (Files | { error: unknown })[]): Files[] {
  const failed = found.find((part) => 'error' in part)
  const files = found.filter((part) => !('error' in part)) as Files[]
  if (failed !== undefined) {
    release(files)
    throw (failed as { error: unknown }).error
  }
  return files
}

function release(files: readonly Files[]): void {
  for (const file of files) {
    file.release()
  }
}

/** The order of `ADAPTER_TIERS` is from far to near. */
function farthest(files: readonly Files[]): AdapterTier {
  return ADAPTER_TIERS[Math.min(...files.map((file) => ADAPTER_TIERS.indexOf(file.tier)))]!
}
