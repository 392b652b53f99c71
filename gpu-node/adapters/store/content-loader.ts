/**
 * Brings located content into the tiers: fetches it where it is remote, has loader threads check and pack it. Everything
 * that several callers want at once runs once; a failure that is one caller's (his token) is his alone.
 */

import { formatAdapterRef, parseAdapterName } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import type { AdapterTier } from '../../../shared/fleet.ts'
import type { AcquireOptions, LoadProgress } from '../adapter-store.ts'
import { DamagedContentError } from '../loader/damaged-content.ts'
import type { LoadResult } from '../loader/load-job.ts'
import type { LoaderPool } from '../loader/loader-pool.ts'
import type { MergeRecipe } from '../merge/merge-checks.ts'
import type { ResolvedAdapter } from '../sources/adapter-source.ts'
import { diskFailed, downloadAdapter, isDiskFailure } from '../sources/download.ts'
import type { ContentIndex } from './content-index.ts'
import type { DiskEntry, DiskTier } from './disk-tier.ts'
import { FairPool, oneLeftFree } from './fair-pool.ts'
import type { PackedTier } from './packed-tier.ts'
import type { RamEntry, RamTier } from './ram-tier.ts'
import type { Located } from './resolver.ts'
import { type Run, SharedLoads } from './shared-loads.ts'

export interface ContentLoaderOptions {
  ram: RamTier
  disk: DiskTier
  packed: PackedTier
  index: ContentIndex
  pool: LoaderPool
  loaderThreads: number
  /** Largest adapter that is fetched. */
  maxFileBytes: number
}

/** In RAM, leased. */
export interface Held {
  entry: RamEntry
  release: () => void
  tier: AdapterTier
}

/** Files that stay where they are until `release`. */
export interface HeldFiles {
  digest: string
  directory: string
  release: () => void
  tier: AdapterTier
}

/** Fetches at once: they wait for the network, and one home that hangs must leave places for the others. */
const FETCHES = { jobs: 64, jobsPerTenant: 16 }
/** Packed files read at once. */
const READS = { jobs: 8, jobsPerTenant: 4 }

export class ContentLoader {
  readonly #options: ContentLoaderOptions
  readonly #fetches = new SharedLoads<LoadResult, LoadProgress>(new FairPool(FETCHES))
  readonly #reads = new SharedLoads<LoadResult, LoadProgress>(new FairPool(READS))
  readonly #loads: SharedLoads<LoadResult, LoadProgress>
  readonly #cpu: FairPool

  constructor(options: ContentLoaderOptions) {
    this.#options = options
    this.#cpu = new FairPool(oneLeftFree(options.loaderThreads))
    this.#loads = new SharedLoads(this.#cpu)
  }

  /** Throws DamagedContentError where stored files prove damaged; they are gone then, and the caller starts again. */
  async hold(located: Located, options: AcquireOptions): Promise<Held> {
    const { ram, disk, index } = this.#options
    const { tenantId } = options
    const known = index.digestOf(located.contentKey)
    const inRam = known === undefined ? undefined : ram.lease(known, tenantId)
    if (inRam !== undefined) {
      this.#touchStored(known!, tenantId)
      return { ...inRam, tier: 'ram' }
    }
    const lease = (result: LoadResult) => ram.lease(result.digest, tenantId)!
    const unpacked = known === undefined ? undefined : await this.#fromPacked(known, options, lease)
    if (unpacked !== undefined) {
      disk.touch(known!, tenantId)
      return { ...unpacked, tier: 'disk' }
    }
    const stored = known === undefined ? undefined : disk.get(known)
    if (stored !== undefined) {
      return { ...(await this.#fromDisk(known!, located, options, lease)), tier: 'disk' }
    }
    const { resolved } = located
    if (resolved === undefined) {
      throw new DamagedContentError('the content has left this node meanwhile')
    }
    if (resolved.directory !== undefined) {
      // Read at its home, as what is fetched: no tier had it.
      return { ...(await this.#inPlace(resolved, resolved.directory, options, lease)), tier: 'remote' }
    }
    return { ...(await this.#fetch(located, resolved, options, lease)), tier: 'remote' }
  }

  /** Files for a merge, without packing what is not used by itself. */
  async holdFiles(located: Located, options: AcquireOptions): Promise<HeldFiles> {
    const { disk, index } = this.#options
    const { resolved } = located
    if (resolved?.directory !== undefined) {
      const digest = index.digestOf(located.contentKey) ?? (await this.#identify(resolved, resolved.directory, options))
      return { digest, directory: resolved.directory, release: () => undefined, tier: 'remote' }
    }
    let tier: AdapterTier = 'disk'
    let digest = index.digestOf(located.contentKey)
    if (digest === undefined || disk.get(digest) === undefined) {
      if (resolved === undefined) {
        throw new DamagedContentError('the content has left this node meanwhile')
      }
      tier = 'remote'
      digest = await this.#fetch(located, resolved, options, (result) => result.digest)
    }
    const lease = disk.lease(digest, options.tenantId)
    if (lease === undefined) {
      const message = 'the parts of this merge do not fit on the node’s disk together'
      throw new RingletError('adapter_capacity', message, { retryAfterSeconds: 1 })
    }
    return { digest, directory: lease.entry.directory, release: lease.release, tier }
  }

  /** Shared by content: equal merges of equal adapters run once. Throws DamagedContentError as `hold` does. */
  async holdMerge(digest: string, recipe: MergeRecipe, parts: HeldFiles[], options: AcquireOptions): Promise<Held> {
    const { ram, disk, pool } = this.#options
    const files = parts.map((part) => ({ directory: part.directory, digest: part.digest }))
    const start = async (run: Run<LoadProgress>) => {
      try {
        const result = await pool.run({ kind: 'merge', parts: files, recipe, digest })
        return this.#intoRam(result, undefined, options, run)
      } catch (error) {
        if (error instanceof DamagedContentError && error.digest !== undefined) {
          disk.remove(error.digest)
        }
        throw error
      }
    }
    const lease = () => ram.lease(digest, options.tenantId)!
    const { taken } = this.#loads.join(`merge ${digest}`, waiting(options), start, lease)
    return { ...(await taken), tier: 'ram' }
  }

  /** Content that is here in any form, a merge that was made before too; `undefined` when it is not. */
  async holdKnown(digest: string, options: AcquireOptions): Promise<Held | undefined> {
    const { ram, disk } = this.#options
    const inRam = ram.lease(digest, options.tenantId)
    if (inRam !== undefined) {
      this.#touchStored(digest, options.tenantId)
      return { ...inRam, tier: 'ram' }
    }
    const lease = () => ram.lease(digest, options.tenantId)!
    const unpacked = await this.#fromPacked(digest, options, lease)
    if (unpacked !== undefined) {
      return { ...unpacked, tier: 'disk' }
    }
    const files = disk.get(digest)
    return files && { ...(await this.#fromDisk(digest, locatedOf(files.manifest), options, lease)), tier: 'disk' }
  }

  #touchStored(digest: string, tenantId: string): void {
    this.#options.disk.touch(digest, tenantId)
    this.#options.packed.touch(digest, tenantId)
  }

  abort(reason: unknown): void {
    this.#reads.abortAll(reason)
    this.#fetches.abortAll(reason)
    this.#loads.abortAll(reason)
  }

  /** `undefined`: there is no such file, or it was damaged and is gone. */
  async #fromPacked<T>(
    digest: string,
    options: AcquireOptions,
    take: (result: LoadResult) => T,
  ): Promise<T | undefined> {
    const { packed } = this.#options
    if (packed.get(digest) === undefined) {
      return undefined
    }
    const start = async (run: Run<LoadProgress>) => {
      run.progress({ phase: 'load', ref: digest })
      const adapter = await packed.read(digest, options.tenantId)
      return this.#intoRam({ digest, rank: adapter.rank, packed: adapter, warnings: [] }, undefined, options, run)
    }
    try {
      return await this.#reads.join(digest, waiting(options), start, take).taken
    } catch (error) {
      if (error instanceof DamagedContentError) {
        return undefined
      }
      throw error
    }
  }

  #fromDisk<T>(
    digest: string,
    located: Located | undefined,
    options: AcquireOptions,
    take: (result: LoadResult) => T,
  ): Promise<T> {
    const { disk, pool } = this.#options
    const start = async (run: Run<LoadProgress>) => {
      const lease = disk.lease(digest, options.tenantId)
      if (lease === undefined) {
        throw new DamagedContentError('the content has left the disk meanwhile')
      }
      try {
        run.progress({ phase: 'load', ref: digest })
        const job = { kind: 'load', directory: lease.entry.directory, expectDigest: digest } as const
        return this.#intoRam(await pool.run(job), located, options, run)
      } catch (error) {
        if (error instanceof DamagedContentError) {
          disk.remove(digest)
        }
        throw error
      } finally {
        lease.release()
      }
    }
    return this.#loads.join(`digest ${digest}`, waiting(options), start, take).taken
  }

  #inPlace<T>(
    resolved: ResolvedAdapter,
    directory: string,
    options: AcquireOptions,
    take: (result: LoadResult) => T,
  ): Promise<T> {
    const start = async (run: Run<LoadProgress>) => {
      run.progress({ phase: 'load', ref: formatAdapterRef(resolved.ref) })
      const result = await this.#options.pool.run({ kind: 'load', directory, ...versionsOf(resolved) })
      this.#options.index.setDigest(resolved.contentKey, result.digest)
      const located = { contentKey: resolved.contentKey, exact: resolved.ref, resolved }
      return this.#intoRam(result, located, options, run)
    }
    return this.#loads.join(`place ${resolved.contentKey}`, waiting(options), start, take).taken
  }

  async #identify(resolved: ResolvedAdapter, directory: string, options: AcquireOptions): Promise<string> {
    const start = async () => {
      const result = await this.#options.pool.run({ kind: 'identify', directory, ...versionsOf(resolved) })
      this.#options.index.setDigest(resolved.contentKey, result.digest)
      return result
    }
    const { taken } = this.#loads.join(
      `identify ${resolved.contentKey}`,
      waiting(options),
      start,
      (found) => found.digest,
    )
    return taken
  }

  /**
   * All who were let in by the adapter's home share one transfer. It uses the right of the caller who began it; when that
   * right fails, only he fails, and the next one goes on with his own.
   */
  async #fetch<T>(
    located: Located,
    resolved: ResolvedAdapter,
    options: AcquireOptions,
    take: (result: LoadResult) => T,
  ): Promise<T> {
    for (;;) {
      const { first, taken } = this.#fetches.join(
        located.contentKey,
        waiting(options),
        (run) => this.#fetchOnce(located, resolved, options, run),
        take,
      )
      try {
        return await taken
      } catch (error) {
        if (first || !isCallersOwn(error)) {
          throw error
        }
      }
    }
  }

  async #fetchOnce(
    located: Located,
    resolved: ResolvedAdapter,
    options: AcquireOptions,
    run: Run<LoadProgress>,
  ): Promise<LoadResult> {
    const { disk, index } = this.#options
    const bytes = resolved.files.reduce((sum, file) => sum + file.bytes, 0)
    const name = formatAdapterRef(resolved.ref)
    if (bytes > this.#options.maxFileBytes) {
      const sizes = `${bytes} bytes; the node's limit is ${this.#options.maxFileBytes}`
      throw new RingletError('adapter_too_large', `adapter ${name} has ${sizes}`)
    }
    const directory = disk.beginFetch(located.contentKey, bytes, options.tenantId)
    if (directory === undefined) {
      throw new RingletError('adapter_capacity', 'the node’s disk for adapters is full of adapters in use', {
        retryAfterSeconds: 5,
      })
    }
    try {
      run.progress({ phase: 'download', ref: name, receivedBytes: 0, totalBytes: bytes })
      await disk.settle()
      await downloadAdapter(resolved, directory, {
        signal: run.signal,
        onProgress: (receivedBytes, totalBytes) =>
          run.progress({ phase: 'download', ref: name, receivedBytes, totalBytes }),
      })
    } catch (error) {
      if (error instanceof RingletError && error.code === 'adapter_capacity') {
        // What arrived on a full disk keeps it full.
        await disk.dropFetch(directory).catch(() => undefined)
      } else {
        disk.suspendFetch(directory)
      }
      throw error
    }
    try {
      run.progress({ phase: 'load', ref: name })
      const result = await this.#onCpu(options.tenantId, () => this.#options.pool.run({ kind: 'load', directory }))
      await disk.adopt(directory, {
        digest: result.digest,
        rank: result.rank,
        contentKey: located.contentKey,
        names: [name],
        files: resolved.files.map((file) => file.name),
        tenantId: options.tenantId,
      })
      index.setDigest(located.contentKey, result.digest)
      return this.#intoRam(result, located, options, run)
    } catch (error) {
      // Refused content leaves no trace.
      await disk.dropFetch(directory).catch(() => undefined)
      throw isDiskFailure(error) ? diskFailed(error) : error
    }
  }

  /**
   * Leased until those who wait have their own leases: in between, another load may need room. `located`: of what was packed
   * just now and is worth keeping so; merges have no place of their own.
   */
  #intoRam(
    result: LoadResult,
    located: Located | undefined,
    { tenantId }: AcquireOptions,
    run: Run<LoadProgress>,
  ): LoadResult {
    const { ram, packed } = this.#options
    if (result.packed !== undefined) {
      ram.insert(result.packed, tenantId)
      run.afterwards(ram.lease(result.digest, tenantId)!.release)
      const notes = {
        rank: result.rank,
        contentKeys: located === undefined ? [] : [located.contentKey],
        names: located === undefined ? [] : [formatAdapterRef(located.exact)],
      }
      if (result.image !== undefined) {
        packed.keep(result.digest, result.image, notes, tenantId)
      }
    }
    return { ...result, packed: undefined, image: undefined }
  }

  /** A turn on the loader threads for work that another pool started. */
  #onCpu<T>(tenantId: string, work: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.#cpu.enqueue(tenantId, () => work().then(resolve, reject))
    })
  }
}

function waiting({ tenantId, signal, onProgress }: AcquireOptions) {
  return { tenantId, signal, onProgress }
}

/** As it was known when it was stored. */
function locatedOf({ contentKeys, names }: DiskEntry['manifest']): Located | undefined {
  const [contentKey] = contentKeys
  const name = names[0] === undefined ? undefined : parseAdapterName(names[0])
  return contentKey === undefined || name?.kind !== 'ref'
    ? undefined
    : { contentKey, exact: name.ref, resolved: undefined }
}

function versionsOf({ versions }: ResolvedAdapter): Pick<ResolvedAdapter, 'versions'> {
  return versions === undefined ? {} : { versions }
}

/** What another caller's token may do better. */
function isCallersOwn(error: unknown): boolean {
  return error instanceof RingletError && error.code === 'adapter_not_found'
}
