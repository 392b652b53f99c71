/** Builds an adapter store from its settings; gpu-node/config.ts fills them from the environment. */

import type { AdapterSource } from '../../../shared/adapter-ref.ts'
import type { AdapterLayout } from '../../model/packed-adapter.ts'
import type { AcquireOptions, AdaptedSelection, AdapterStore } from '../adapter-store.ts'
import { LoaderPool } from '../loader/loader-pool.ts'
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
  now?: () => number
  /** For adapters' homes over HTTP; undici's with time limits when absent. */
  fetch?: Fetch
}

export async function openAdapterStore(config: AdapterStoreConfig): Promise<AdapterStore & { violations(): string[] }> {
  const now = config.now ?? Date.now
  const staleAfterMs = config.staleAfterMs ?? 30 * 60_000
  const maxFileBytes = config.maxAdapterBytes ?? WEIGHT_FILE_LIMITS.maxFileBytes
  const loaderThreads = config.loaderThreads ?? 2
  const index = new ContentIndex()
  const disk = await DiskTier.open({
    directory: config.cacheDirectory,
    budgetBytes: config.diskBytes,
    staleAfterMs,
    now,
    onEvict: (digest) => forgetUnheld(digest),
  })
  const ram: RamTier = new RamTier({
    budgetBytes: config.ramBytes,
    staleAfterMs,
    now,
    onEvict: (digest) => forgetUnheld(digest),
  })
  function forgetUnheld(digest: string): void {
    if (ram.get(digest) === undefined && disk.get(digest) === undefined) {
      index.forget(digest)
    }
  }
  disk.makeRoom(0, '')
  for (const [digest, { manifest }] of disk.entries()) {
    for (const contentKey of manifest.contentKeys) {
      index.setDigest(contentKey, digest)
    }
    for (const name of manifest.names) {
      index.setKey(name, manifest.contentKeys[0]!)
      index.addName(digest, name)
    }
  }
  const ownPool = () =>
    new LoaderPool({
      baseDirectory: config.base.directory,
      ...(config.base.name === undefined ? {} : { baseName: config.base.name }),
      limits: { ...WEIGHT_FILE_LIMITS, maxFileBytes },
      adapterLayout: config.base.adapterLayout,
      threads: loaderThreads,
      timeoutMs: config.loadTimeoutMs ?? 60_000,
    })
  const pool = config.loaderPool ?? ownPool()
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
      now,
    },
    index,
  )
  const loader = new ContentLoader({ ram, disk, index, pool, loaderThreads, maxFileBytes })
  const store = new TieredStore({
    ram,
    disk,
    index,
    resolver,
    loader,
    engineResident: config.engineResident ?? (() => new Set()),
    closeHomes: async () => {
      s3.close()
      await Promise.all([pool === config.loaderPool ? undefined : pool.close(), home.close()])
    },
  })
  try {
    await pool.ready()
    for (const { selection, options, pin } of config.preload ?? []) {
      await (pin ? store.pin(selection, options) : store.prefetch(selection, options))
    }
  } catch (error) {
    await store.close()
    throw error
  }
  return store
}
