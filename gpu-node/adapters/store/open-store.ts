/** Builds an adapter store from its settings; gpu-node/config.ts fills them from the environment. */

import { type AdapterSource, selectionKey } from '../../../shared/adapter-ref.ts'
import type { AdapterLayout, PackedAdapter } from '../../model/packed-adapter.ts'
import type { AcquireOptions, AdaptedSelection, AdapterStore } from '../adapter-store.ts'
import { LoaderPool } from '../loader/loader-pool.ts'
import { packKey } from '../loader/pack-key.ts'
import { PackedReaders } from '../loader/packed-readers.ts'
import { WEIGHT_FILE_LIMITS } from '../raw-tensor.ts'
import type { AdapterSourceReader } from '../sources/adapter-source.ts'
import { createHomeFetch, type Fetch } from '../sources/http-home.ts'
import { createHubSource, type HubConfig } from '../sources/hub-source.ts'
import { createLocalSource } from '../sources/local-source.ts'
import { createPredibaseSource, type PredibaseConfig } from '../sources/predibase-source.ts'
import { createS3Home, createS3Source, type S3Config } from '../sources/s3-source.ts'
import { ContentIndex } from './content-index.ts'
import { ContentLoader } from './content-loader.ts'
import { DiskTier } from './disk-tier.ts'
import { ownFolder } from './folder-owner.ts'
import { PackedTier } from './packed-tier.ts'
import { type Pin, Pins } from './pins.ts'
import { RamTier } from './ram-tier.ts'
import { Resolver } from './resolver.ts'
import { TieredStore } from './tiered-store.ts'

export interface AdapterStoreConfig {
  base: {
    /** The checkpoint, from which loader threads read what packing needs. */
    directory: string
    /** The name under which it is served. */
    name?: string
    /** As the engine takes adapters; float32 for the LoRA kernel, where it can run, when absent. */
    adapterLayout?: AdapterLayout
  }
  cacheDirectory: string
  diskBytes: number
  ramBytes: number
  /** Largest adapter that is fetched; 4 GiB when absent. */
  maxAdapterBytes?: number
  /** Loader threads; 2 when absent. */
  loaderThreads?: number
  /** Threads that are there already, and stay; the store starts its own when absent. */
  loaderPool?: LoaderPool
  /** Longest time for checking and packing one adapter; 60 s when absent. */
  loadTimeoutMs?: number
  hub: HubConfig
  predibase: PredibaseConfig
  s3: S3Config
  /** Directories below which `local` adapters lie. */
  adapterRoots: readonly string[]
  /** How long a home's answer counts for refs without exact revision; 5 s when absent. */
  resolveTtlMs?: number
  /** How long a refusal is repeated without asking again; 10 s when absent. */
  refusalTtlMs?: number
  /** An adapter unused for this long is evicted before any other; 30 min when absent. */
  staleAfterMs?: number
  /** Digests that the engine holds now. */
  engineResident?: () => ReadonlySet<string>
  /** Loaded before the store opens for callers; a failure is thrown. */
  preload?: readonly { selection: AdaptedSelection; options: AcquireOptions; pin?: boolean }[]
  /** What became of the pins of an earlier process; those whose content must be fetched come when it has been. */
  onRestored?: (pin: { ref: string } & ({ packed: PackedAdapter } | { error: unknown })) => void
  now?: () => number
  /** For adapters' homes over HTTP; undici's with time limits when absent. */
  fetch?: Fetch
}

export async function openAdapterStore(config: AdapterStoreConfig): Promise<AdapterStore & { violations(): string[] }> {
  const releaseFolder = await ownFolder(config.cacheDirectory)
  const pool = config.loaderPool ?? startPool(config)
  const readers = new PackedReaders(READER_THREADS)
  const closeThreads = async () => {
    await Promise.all([readers.close(), pool === config.loaderPool ? undefined : pool.close()])
  }
  try {
    const index = new ContentIndex()
    const pins = await Pins.open(config.cacheDirectory)
    const tiers = await openTiers(config, index, pool, readers, pins)
    const store = buildStore(config, index, tiers, pins, pool, { closeThreads, releaseFolder })
    await restorePins(store, tiers, pins, config)
    await preload(store, config)
    return store
  } catch (error) {
    await closeThreads()
    await releaseFolder()
    throw error
  }
}

const MINUTE_MS = 60_000

function startPool(config: AdapterStoreConfig): LoaderPool {
  const { base, loaderThreads, loadTimeoutMs } = config
  return new LoaderPool({
    baseDirectory: base.directory,
    ...(base.name === undefined ? {} : { baseName: base.name }),
    limits: { ...WEIGHT_FILE_LIMITS, maxFileBytes: largestFile(config) },
    adapterLayout: base.adapterLayout,
    threads: loaderThreads ?? LOADER_THREADS,
    timeoutMs: loadTimeoutMs ?? MINUTE_MS,
  })
}

interface Tiers {
  ram: RamTier
  disk: DiskTier
  packed: PackedTier
}

async function openTiers(
  config: AdapterStoreConfig,
  index: ContentIndex,
  pool: LoaderPool,
  readers: PackedReaders,
  pins: Pins,
): Promise<Tiers> {
  const { baseDigest, layout } = await pool.ready()
  const now = config.now ?? Date.now
  const staleAfterMs = config.staleAfterMs ?? 30 * MINUTE_MS
  const open: Partial<Tiers> = {}
  const onEvict = (digest: string) => {
    if (![open.ram, open.disk, open.packed].some((tier) => tier?.get(digest) !== undefined)) {
      index.forget(digest)
    }
  }
  const directory = config.cacheDirectory
  const common = { staleAfterMs, now, onEvict, isPinned: (digest: string) => pins.has(digest) }
  const ram = new RamTier({ ...common, budgetBytes: config.ramBytes })
  const disk = await DiskTier.open({ ...common, directory, budgetBytes: config.diskBytes })
  const packed = await PackedTier.open({
    directory,
    key: packKey(baseDigest, layout),
    now,
    makeRoom: (bytes, tenantId) => disk.makeRoom(bytes, tenantId),
    readers,
    isPinned: common.isPinned,
    onEvict,
  })
  disk.attach(packed)
  Object.assign(open, { ram, disk, packed })
  // The budget may have become smaller.
  disk.makeRoom(0, '')
  for (const [digest, { manifest }] of disk.entries()) {
    remember(index, digest, manifest)
  }
  for (const [digest, { notes }] of packed.entries()) {
    remember(index, digest, notes)
  }
  return { ram, disk, packed }
}

function remember(index: ContentIndex, digest: string, known: { contentKeys: string[]; names: string[] }): void {
  for (const contentKey of known.contentKeys) {
    index.setDigest(contentKey, digest)
  }
  for (const name of known.names) {
    index.setKey(name, known.contentKeys[0]!)
    index.addName(digest, name)
  }
}

function buildStore(
  config: AdapterStoreConfig,
  index: ContentIndex,
  tiers: Tiers,
  pins: Pins,
  pool: LoaderPool,
  { closeThreads, releaseFolder }: { closeThreads: () => Promise<void>; releaseFolder: () => Promise<void> },
): TieredStore {
  const home = config.fetch === undefined ? createHomeFetch() : { fetch: config.fetch, close: async () => undefined }
  const s3 = createS3Home(config.s3)
  const sources: Record<AdapterSource, AdapterSourceReader> = {
    hub: createHubSource(config.hub, home.fetch),
    pbase: createPredibaseSource(config.predibase, s3),
    s3: createS3Source(config.s3, s3),
    local: createLocalSource(config.adapterRoots),
  }
  const resolver = new Resolver(
    {
      sources,
      resolveTtlMs: config.resolveTtlMs ?? 5_000,
      refusalTtlMs: config.refusalTtlMs ?? 10_000,
      hubOffline: config.hub.offline,
      now: config.now ?? Date.now,
    },
    index,
  )
  const loaderThreads = config.loaderThreads ?? LOADER_THREADS
  const loader = new ContentLoader({ ...tiers, index, pool, loaderThreads, maxFileBytes: largestFile(config) })
  return new TieredStore({
    ...tiers,
    index,
    resolver,
    loader,
    pins,
    engineResident: config.engineResident ?? (() => new Set()),
    releaseFolder,
    closeHomes: async () => {
      s3.close()
      await Promise.all([closeThreads(), home.close()])
    },
  })
}

/** A node does not open before what it holds is back; what must be fetched comes later, or its home would decide over the start. */
async function restorePins(
  store: TieredStore,
  { disk, packed }: Tiers,
  pins: Pins,
  config: AdapterStoreConfig,
): Promise<void> {
  const restore = async (pin: Pin) => {
    const ref = selectionKey(pin.selection)
    try {
      const lease = await store.restore(pin)
      config.onRestored?.({ ref, packed: lease.packed })
      lease.release()
    } catch (error) {
      config.onRestored?.({ ref, error })
    }
  }
  for (const pin of pins.all()) {
    const restored = restore(pin)
    if (disk.get(pin.digest) !== undefined || packed.get(pin.digest) !== undefined) {
      await restored
    }
  }
}

async function preload(store: TieredStore, config: AdapterStoreConfig): Promise<void> {
  try {
    for (const { selection, options, pin } of config.preload ?? []) {
      await (pin ? store.pinForNow(selection, options) : store.prefetch(selection, options))
    }
  } catch (error) {
    await store.close()
    throw error
  }
}

const LOADER_THREADS = 2
/** A large packed file is read in as many parts. */
const READER_THREADS = 2

function largestFile(config: AdapterStoreConfig): number {
  return config.maxAdapterBytes ?? WEIGHT_FILE_LIMITS.maxFileBytes
}
