/** A real store over the llama fixture base, with a hub on loopback and temporary directories. */

import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { AcquireOptions, AdapterStore } from '../../../gpu-node/adapters/adapter-store.ts'
import { type AdapterStoreConfig, openAdapterStore } from '../../../gpu-node/adapters/store/open-store.ts'
import { type FakeHub, startFakeHub } from '../../support/fake-hub.ts'
import { LLAMA_BASE, temporaryDirectory } from '../../support/golden-fixtures.ts'

export interface StoreHarness {
  store: AdapterStore & { violations(): string[] }
  hub: FakeHub
  /** Root of local adapters. */
  root: string
  cacheDirectory: string
  clock: { now: number }
  /** Closes the store and opens another over the same directories. */
  reopen(changes?: Partial<AdapterStoreConfig>): Promise<void>
  close(): Promise<void>
}

export async function openHarness(changes: Partial<AdapterStoreConfig> = {}): Promise<StoreHarness> {
  const hub = await startFakeHub()
  const directory = await temporaryDirectory()
  const root = join(directory.path, 'root')
  const cacheDirectory = join(directory.path, 'cache')
  await mkdir(root)
  const clock = { now: Date.now() }
  const open = (more: Partial<AdapterStoreConfig>) =>
    openAdapterStore({
      base: { directory: LLAMA_BASE, name: 'llama' },
      cacheDirectory,
      diskBytes: 64 * 2 ** 20,
      ramBytes: 64 * 2 ** 20,
      loaderThreads: 1,
      hub: { endpoint: hub.url, offline: false },
      predibase: { endpoint: 'http://127.0.0.1:1' },
      s3: { allowedBuckets: [] },
      adapterRoots: [root],
      now: () => clock.now,
      ...changes,
      ...more,
    })
  const harness: StoreHarness = {
    store: await open({}),
    hub,
    root,
    cacheDirectory,
    clock,
    reopen: async (more = {}) => {
      await harness.store.close()
      harness.store = await open(more)
    },
    close: async () => {
      await harness.store.close()
      await hub.close()
      await directory.remove()
    },
  }
  return harness
}

export function as(tenantId: string, token?: string, more: Partial<AcquireOptions> = {}): AcquireOptions {
  return { tenantId, tokens: token === undefined ? {} : { '*': token }, ...more }
}

export const hubRef = (id: string, revision?: string) =>
  ({
    kind: 'single',
    ref: { source: 'hub', id, ...(revision === undefined ? {} : { revision }) },
  }) as const

export const localRef = (id: string) => ({ kind: 'single', ref: { source: 'local', id } }) as const
