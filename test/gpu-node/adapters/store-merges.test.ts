import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, afterEach, beforeEach, expect, it } from 'vitest'
import { LoaderPool } from '../../../gpu-node/adapters/loader/loader-pool.ts'
import { WEIGHT_FILE_LIMITS } from '../../../gpu-node/adapters/raw-tensor.ts'
import type { AdapterRef, AdapterSelection } from '../../../shared/adapter-ref.ts'
import { adapterFiles, LLAMA_BASE, variant, writeFiles } from '../../support/golden-fixtures.ts'
import { as, localRef, openHarness, type StoreHarness } from './store-harness.ts'

let at: StoreHarness
const loaderPool = new LoaderPool({
  baseDirectory: LLAMA_BASE,
  limits: WEIGHT_FILE_LIMITS,
  threads: 1,
  timeoutMs: 60_000,
})

afterAll(() => loaderPool.close())

beforeEach(async () => {
  at = await openHarness({ loaderPool })
})

afterEach(async () => {
  expect(at.store.violations()).toEqual([])
  await at.close()
})

type Merge = Extract<AdapterSelection, { kind: 'merge' }>
const merge = (refs: AdapterRef[], weights: number[], more: Partial<Merge> = {}): Merge => ({
  kind: 'merge',
  strategy: 'linear',
  parts: refs.map((ref, i) => ({ ref, weight: weights[i]! })),
  ...more,
})
const hub = (id: string): AdapterRef => ({ source: 'hub', id })
const local = (id: string): AdapterRef => ({ source: 'local', id })

it('a merge is packed as PEFT’s merged adapter is, from parts of several sources and tokens', async () => {
  at.hub.commit({ id: 'org/a', tokens: ['for a'], files: adapterFiles('merge-a') })
  at.hub.commit({ id: 'org/b', tokens: ['for b'], files: adapterFiles('merge-b') })
  await writeFiles(join(at.root, 'c'), adapterFiles('merge-c'))
  await writeFiles(join(at.root, 'merged'), adapterFiles('merged-linear'))
  const tokens = { 'hub:org/a': 'for a', 'hub:org/b': 'for b' }
  const selection = merge([hub('org/a'), hub('org/b'), local('c')], [1, 0.5, 0.25])
  const merged = await at.store.acquire(selection, { tenantId: 't', tokens })
  expect(merged).toMatchObject({ cacheTier: 'remote', rank: 8 })
  expect(merged.refs[2]).toBe('local:c')
  const expected = await at.store.acquire(localRef('merged'), as('t'))
  expect({ ...merged.packed, digest: '' }).toEqual({ ...expected.packed, digest: '' })
})

it('results are kept by content: other names for the same parts, and fields without effect, are the same merge', async () => {
  await writeFiles(join(at.root, 'a'), adapterFiles('merge-a'))
  await writeFiles(join(at.root, 'b'), adapterFiles('merge-b'))
  at.hub.commit({ id: 'org/b', files: adapterFiles('merge-b') })
  const first = await at.store.acquire(merge([local('a'), local('b')], [1, 2]), as('t'))
  expect(first.cacheTier).toBe('remote')
  const same = await at.store.acquire(merge([local('a'), hub('org/b')], [1, 2], { density: 0.5, seed: 4 }), as('t'))
  expect(same.digest).toBe(first.digest)
  expect((await at.store.acquire(merge([local('a'), local('b')], [1, 2]), as('t'))).cacheTier).toBe('ram')
  for (const other of [
    merge([local('b'), local('a')], [1, 2]),
    merge([local('a'), local('b')], [2, 1]),
    merge([local('a'), local('b')], [1, 2], { strategy: 'cat' }),
    merge([local('a'), local('b')], [1, 2], { strategy: 'dare_linear', density: 0.5, seed: 1 }),
    merge([local('a'), local('b')], [1, 2], { strategy: 'dare_linear', density: 0.5, seed: 2 }),
  ]) {
    expect((await at.store.acquire(other, as('t'))).digest).not.toBe(first.digest)
  }
})

it('each part needs its own right; a refused part refuses the merge and leaks nothing', async () => {
  at.hub.commit({ id: 'org/a', tokens: ['good'], files: adapterFiles('merge-a') })
  await writeFiles(join(at.root, 'b'), adapterFiles('merge-b'))
  const selection = merge([local('b'), hub('org/a')], [1, 1])
  await at.store.acquire(selection, as('one', 'good'))
  await expect(at.store.acquire(selection, as('two', 'bad'))).rejects.toMatchObject({ code: 'adapter_not_found' })
  await expect(at.store.acquire(selection, as('two'))).rejects.toMatchObject({ code: 'adapter_not_found' })
})

it('20 callers of one merge wait for one computation; what can’t be merged is a refusal for all', async () => {
  for (const name of ['merge-a', 'attention-r16-rslora']) {
    await writeFiles(join(at.root, name), adapterFiles(name))
  }
  const parts = [local('merge-a'), local('attention-r16-rslora')]
  const cat = Array.from({ length: 20 }, () => at.store.acquire(merge(parts, [1, 1], { strategy: 'cat' }), as('t')))
  expect(new Set((await Promise.all(cat)).map((lease) => lease.packed)).size).toBe(1)
  const linear = Array.from({ length: 5 }, () => at.store.acquire(merge(parts, [1, 1]), as('t')))
  for (const result of await Promise.allSettled(linear)) {
    expect(result).toMatchObject({ status: 'rejected', reason: { code: 'merge_invalid' } })
  }
  await expect(at.store.acquire(merge(parts, [1, 1], { strategy: 'ties' }), as('t'))).rejects.toMatchObject({
    code: 'merge_invalid',
    param: 'merged_adapters.density',
  })
})

it('a part that changes between the look at it and the merge is merged as what it is then', async () => {
  await writeFiles(join(at.root, 'a'), variant('merge-a', 1))
  await writeFiles(join(at.root, 'b'), adapterFiles('merge-b'))
  await at.store.prefetch(localRef('a'), as('t'))
  const before = await at.store.acquire(merge([local('a'), local('b')], [1, 3]), as('t'))
  // The directory's last look counts for a second.
  await writeFiles(join(at.root, 'a'), variant('merge-a', 2))
  const after = await at.store.acquire(merge([local('a'), local('b')], [1, 1]), as('t'))
  at.clock.now += 60_000
  const other = await openHarness({ loaderPool })
  await writeFiles(join(other.root, 'a'), variant('merge-a', 2))
  await writeFiles(join(other.root, 'b'), adapterFiles('merge-b'))
  const expected = await other.store.acquire(merge([local('a'), local('b')], [1, 1]), as('t'))
  await other.close()
  expect(after.digest).toBe(expected.digest)
  expect(after.packed).toEqual(expected.packed)
  expect(after.digest).not.toBe(before.digest)
})

it('a part whose stored files are damaged is fetched again before it is merged', async () => {
  at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
  at.hub.commit({ id: 'org/b', files: adapterFiles('merge-b') })
  const selection = merge([hub('org/a'), hub('org/b')], [1, 1])
  const { digest } = await at.store.prefetch({ kind: 'single', ref: hub('org/a') }, as('t'))
  const path = join(at.cacheDirectory, 'content', digest, 'adapter_model.safetensors')
  const bytes = await readFile(path)
  bytes[bytes.length - 2]! ^= 64
  await writeFile(path, bytes)
  const merged = await at.store.acquire(selection, as('t'))
  expect(at.hub.transfers.filter((line) => line.startsWith('org/a/adapter_model')).length).toBe(2)
  const other = await openHarness({ loaderPool })
  await writeFiles(join(other.root, 'a'), adapterFiles('merge-a'))
  await writeFiles(join(other.root, 'b'), adapterFiles('merge-b'))
  const expected = await other.store.acquire(merge([local('a'), local('b')], [1, 1]), as('t'))
  await other.close()
  expect(merged.digest).toBe(expected.digest)
  expect(merged.packed).toEqual(expected.packed)
})

it('a merge whose result is in RAM is served although its parts have left the disk', async () => {
  at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
  at.hub.commit({ id: 'org/b', files: adapterFiles('merge-b') })
  const selection = merge([hub('org/a'), hub('org/b')], [1, 1])
  const first = await at.store.acquire(selection, as('t'))
  for (const { digest } of at.store.list().filter((listing) => listing.digest !== first.digest)) {
    await at.store.unload(digest)
  }
  const transfers = at.hub.transfers.length
  expect(await at.store.acquire(selection, as('t'))).toMatchObject({ cacheTier: 'ram', digest: first.digest })
  expect(at.hub.transfers.length).toBe(transfers)
})
