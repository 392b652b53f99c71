import { renameSync, rmSync, symlinkSync } from 'node:fs'
import { appendFile, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { LoaderPool } from '../../../gpu-node/adapters/loader/loader-pool.ts'
import { WEIGHT_FILE_LIMITS } from '../../../gpu-node/adapters/raw-tensor.ts'
import { adapterFiles, LLAMA_BASE, variant, writeFiles } from '../../support/golden-fixtures.ts'
import { as, hubRef, localRef, openHarness, type StoreHarness } from './store-harness.ts'

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

const inRam = () =>
  at.store
    .list()
    .filter((listing) => listing.tier === 'ram')
    .map((listing) => listing.ref)
    .sort()
const transfersOf = (id: string) => at.hub.transfers.filter((line) => line.startsWith(`${id}/adapter_model`)).length

describe('tiers', () => {
  it('an adapter comes from remote, then RAM, then the engine, and from disk after a restart', async () => {
    const commit = at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const resident = new Set<string>()
    await at.reopen({ engineResident: () => resident })
    const first = await at.store.acquire(hubRef('org/a', commit), as('t'))
    expect(first).toMatchObject({ cacheTier: 'remote', rank: 8, refs: [`hub:org/a@${commit}`] })
    expect(first.bytes).toBeGreaterThan(0)
    expect((await at.store.acquire(hubRef('org/a', commit), as('t'))).cacheTier).toBe('ram')
    resident.add(first.digest)
    expect((await at.store.acquire(hubRef('org/a', commit), as('t'))).cacheTier).toBe('engine')
    await at.reopen()
    at.hub.requests.length = 0
    const again = await at.store.acquire(hubRef('org/a', commit), as('t'))
    expect(again).toMatchObject({ cacheTier: 'disk', digest: first.digest })
    expect(again.packed).toEqual(first.packed)
    // An exact revision that is held needs no word with its home.
    expect(at.hub.requests).toEqual([])
  })

  it('the same content under two names is held once', async () => {
    at.hub.commit({ id: 'org/one', files: adapterFiles('all-r4') })
    at.hub.commit({ id: 'org/two', files: adapterFiles('all-r4-bin', 'adapter_model.bin') })
    const one = await at.store.acquire(hubRef('org/one'), as('t'))
    const two = await at.store.acquire(hubRef('org/two'), as('t'))
    expect(two.digest).toBe(one.digest)
    const [listing, ...others] = at.store.list()
    expect(others).toEqual([])
    expect(listing).toMatchObject({ leases: 2, tier: 'ram' })
    expect(listing!.refs.map((ref) => ref.split('@')[0])).toEqual(['hub:org/two', 'hub:org/one'])
    expect(await readdir(join(at.cacheDirectory, 'content'))).toEqual([one.digest])
  })

  it('a new commit under the same name is another adapter', async () => {
    at.hub.commit({ id: 'org/a', files: variant('merge-a', 1) })
    const before = await at.store.acquire(hubRef('org/a'), as('t'))
    at.hub.commit({ id: 'org/a', files: variant('merge-a', 2) })
    at.clock.now += 60_000
    const after = await at.store.acquire(hubRef('org/a'), as('t'))
    expect(after.digest).not.toBe(before.digest)
  })

  it('damaged files are noticed and removed: the packed form first, then the content, then it is fetched again', async () => {
    const commit = at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const { digest } = await at.store.prefetch(hubRef('org/a', commit), as('t'))
    await at.store.close()
    const files = await diskFiles()
    const packed = files.find((path) => path.includes('/packed/'))!
    const content = files.find((path) => path.endsWith('adapter_model.safetensors'))!
    await damage(packed)
    await at.reopen()
    expect(await at.store.acquire(hubRef('org/a', commit), as('t'))).toMatchObject({ cacheTier: 'disk', digest })
    await at.store.close()
    await damage(packed)
    await damage(content)
    await at.reopen()
    expect(await at.store.acquire(hubRef('org/a', commit), as('t'))).toMatchObject({ cacheTier: 'remote', digest })
  })

  it('from its packed form an adapter is what it was, and so is a merge', async () => {
    await writeFiles(join(at.root, 'a'), adapterFiles('dora-r8'))
    await writeFiles(join(at.root, 'b'), adapterFiles('merge-b'))
    const merge = {
      kind: 'merge',
      strategy: 'cat',
      parts: [
        { ref: localRef('b').ref, weight: 1 },
        { ref: localRef('b').ref, weight: -3 },
      ],
    } as const
    const selections = [localRef('a'), { ...merge, parts: [...merge.parts] }]
    const before = await Promise.all(selections.map((selection) => at.store.acquire(selection, as('t'))))
    await at.reopen()
    for (const [i, selection] of selections.entries()) {
      const again = await at.store.acquire(selection, as('t'))
      expect(again).toMatchObject({ cacheTier: 'disk', digest: before[i]!.digest, refs: before[i]!.refs })
      expect(again.packed).toEqual(before[i]!.packed)
    }
  })

  it('what is not whole on disk is removed at the start', async () => {
    await at.store.prefetch(hubRef('org/a', at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })), as('t'))
    await at.store.close()
    for (const path of await diskFiles()) {
      await (path.includes('/packed/') ? truncate(path, 100) : appendFile(path, 'x'))
    }
    await at.reopen()
    expect(at.store.list()).toEqual([])
    expect(await diskFiles()).toEqual([])
  })

  it('local adapters are read in place, and a changed one is another adapter', async () => {
    await writeFiles(join(at.root, 'mine'), variant('merge-a', 1))
    const before = await at.store.acquire(localRef('mine'), as('t'))
    expect(before.cacheTier).toBe('remote')
    expect((await at.store.acquire(localRef('mine'), as('t'))).cacheTier).toBe('ram')
    await writeFiles(join(at.root, 'mine'), variant('merge-a', 2))
    at.clock.now += 1_001
    const after = await at.store.acquire(localRef('mine'), as('t'))
    expect(after.digest).not.toBe(before.digest)
    expect(await readdir(join(at.cacheDirectory, 'content'))).toEqual([])
  })

  it('a local adapter that becomes a link to elsewhere after the look at it is not read', async () => {
    const outside = await writeFiles(join(at.root, '..', 'outside'), variant('merge-a', 3))
    await writeFiles(join(at.root, 'mine'), variant('merge-a', 1))
    const mine = join(at.root, 'mine')
    const swap = () => {
      rmSync(mine, { recursive: true })
      symlinkSync(outside, mine)
    }
    const options = as('t', undefined, { onProgress: ({ phase }) => phase === 'load' && swap() })
    await expect(at.store.acquire(localRef('mine'), options)).rejects.toMatchObject({ code: 'adapter_not_found' })
    expect(at.store.list()).toEqual([])
  })

  it('a local file that is replaced after the look at it is read as what it is then', async () => {
    await writeFiles(join(at.root, 'mine'), variant('merge-a', 1))
    await writeFiles(join(at.root, 'theirs'), variant('merge-a', 2))
    let left = 1
    const replace = () => {
      if (left-- > 0) {
        renameSync(join(at.root, 'theirs/adapter_model.safetensors'), join(at.root, 'mine/adapter_model.safetensors'))
      }
    }
    const looks: string[] = []
    const onProgress = ({ phase }: { phase: string }) => {
      looks.push(phase)
      return phase === 'load' && replace()
    }
    const lease = await at.store.acquire(localRef('mine'), as('t', undefined, { onProgress }))
    expect(looks.filter((phase) => phase === 'resolve')).toHaveLength(2)
    at.clock.now += 60_000
    expect(await at.store.acquire(localRef('mine'), as('t'))).toMatchObject({ digest: lease.digest, cacheTier: 'ram' })
  })

  it('in offline mode what is on disk is served, by exact and by short name', async () => {
    const commit = at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const { digest } = await at.store.prefetch(hubRef('org/a'), as('t'))
    await at.reopen({ hub: { endpoint: at.hub.url, offline: true } })
    at.hub.requests.length = 0
    expect((await at.store.acquire(hubRef('org/a', commit), as('t'))).digest).toBe(digest)
    expect((await at.store.acquire(hubRef('org/a'), as('t'))).digest).toBe(digest)
    await expect(at.store.acquire(hubRef('org/b'), as('t'))).rejects.toMatchObject({ code: 'adapter_home_unreachable' })
    expect(at.hub.requests).toEqual([])
  })

  it('a home that went away does not take away what its caller has used', async () => {
    at.hub.commit({ id: 'org/a', tokens: ['mine'], files: adapterFiles('merge-a') })
    const { digest } = await at.store.prefetch(hubRef('org/a'), as('t', 'mine'))
    at.clock.now += 60_000
    at.hub.failRequests(1000, 503)
    expect((await at.store.acquire(hubRef('org/a'), as('t', 'mine'))).digest).toBe(digest)
    await expect(at.store.acquire(hubRef('org/a'), as('t', 'other'))).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
  })
})

describe('many at once', () => {
  it('200 requests for 50 cold adapters fetch each adapter once', async () => {
    for (let i = 0; i < 50; i++) {
      at.hub.commit({ id: `org/cold-${i}`, files: variant('regex-r1', i) })
    }
    const leases = await Promise.all(
      Array.from({ length: 200 }, (_, i) => at.store.acquire(hubRef(`org/cold-${i % 50}`), as(`t${i % 7}`))),
    )
    expect(new Set(leases.map((lease) => lease.digest)).size).toBe(50)
    for (let i = 0; i < 50; i++) {
      expect(transfersOf(`org/cold-${i}`)).toBe(1)
    }
    expect(at.store.list().map((listing) => listing.leases)).toEqual(Array(50).fill(4))
    for (const lease of leases) {
      lease.release()
      lease.release()
    }
    expect(at.store.list().map((listing) => listing.leases)).toEqual(Array(50).fill(0))
  })

  it('a bad token fails only those who brought it, among many who want the same adapter', async () => {
    at.hub.commit({ id: 'org/private', tokens: ['good', 'also good'], files: adapterFiles('merge-a') })
    const results = await Promise.allSettled(
      Array.from({ length: 40 }, (_, i) => {
        const token = ['bad', 'good', 'also good', undefined][i % 4]
        return at.store.acquire(hubRef('org/private'), as(`t${i % 4}`, token))
      }),
    )
    expect(results.map((result) => result.status)).toEqual(
      results.map((_, i) => (i % 4 === 1 || i % 4 === 2 ? 'fulfilled' : 'rejected')),
    )
    const refused = results[0] as PromiseRejectedResult
    expect(refused.reason).toMatchObject({ code: 'adapter_not_found' })
    expect(transfersOf('org/private')).toBe(1)
  })

  it('a right that ends during the transfer fails its owner; the next caller goes on with his own', async () => {
    at.hub.commit({ id: 'org/private', tokens: ['first', 'second'], files: adapterFiles('merge-a') })
    const go = at.hub.stall('org/private')
    const first = at.store.acquire(hubRef('org/private'), as('a', 'first')).catch((error: unknown) => error)
    await until(() => transfersOf('org/private') > 0)
    const second = at.store.acquire(hubRef('org/private'), as('b', 'second'))
    await until(() => at.hub.requests.filter((line) => line.includes('/tree/')).length === 2)
    at.hub.revoke('org/private', 'first')
    at.hub.breakTransfers(2)
    go()
    expect(await first).toMatchObject({ code: 'adapter_not_found' })
    expect((await second).rank).toBe(8)
  })

  it('nobody waits for somebody else’s adapter', async () => {
    at.hub.commit({ id: 'org/quick', files: adapterFiles('merge-b') })
    const go: (() => void)[] = []
    const stalled = []
    for (let i = 0; i < 30; i++) {
      at.hub.commit({ id: `org/slow-${i}`, files: variant('regex-r1', i) })
      go.push(at.hub.stall(`org/slow-${i}`))
      stalled.push(at.store.acquire(hubRef(`org/slow-${i}`), as('greedy')))
    }
    await until(() => at.hub.transfers.length > 0)
    expect((await at.store.acquire(hubRef('org/quick'), as('modest'))).rank).toBe(8)
    for (const release of go) {
      release()
    }
    expect((await Promise.all(stalled)).length).toBe(30)
  })

  it('a caller who leaves ends his wait, and the transfer when he was the last', async () => {
    at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const go = at.hub.stall('org/a')
    const [one, two] = [new AbortController(), new AbortController()]
    const first = at.store.acquire(hubRef('org/a'), as('t', undefined, { signal: one.signal }))
    const second = at.store.acquire(hubRef('org/a'), as('t', undefined, { signal: two.signal }))
    await until(() => at.hub.transfers.length > 0)
    one.abort(new Error('first left'))
    await expect(first).rejects.toThrow('first left')
    go()
    expect((await second).rank).toBe(8)
    two.abort()
    expect(at.store.list()[0]!.leases).toBe(1)
  })

  it('tells how a load goes', async () => {
    at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const phases: string[] = []
    await at.store.acquire(hubRef('org/a'), as('t', undefined, { onProgress: ({ phase }) => phases.push(phase) }))
    expect([...new Set(phases)]).toEqual(['resolve', 'download', 'load'])
  })
})

describe('refusals', () => {
  it('are remembered shortly, for this caller’s token alone', async () => {
    at.hub.commit({ id: 'org/private', tokens: ['good'], files: adapterFiles('merge-a') })
    const bad = () => at.store.acquire(hubRef('org/private'), as('t', 'bad'))
    await expect(bad()).rejects.toMatchObject({ code: 'adapter_not_found' })
    const asked = at.hub.requests.length
    await expect(bad()).rejects.toMatchObject({ code: 'adapter_not_found' })
    expect(at.hub.requests.length).toBe(asked)
    expect((await at.store.acquire(hubRef('org/private'), as('t', 'good'))).rank).toBe(8)
    // It is on this node now; that does not let the other caller in.
    await expect(bad()).rejects.toMatchObject({ code: 'adapter_not_found' })
    at.clock.now += 60_000
    await expect(bad()).rejects.toMatchObject({ code: 'adapter_not_found' })
    expect(at.hub.requests.length).toBeGreaterThan(asked)
  })

  it('of content leave no trace, in RAM or on disk', async () => {
    const files = adapterFiles('merge-a')
    const cut = files['adapter_model.safetensors']!.subarray(0, 5000)
    at.hub.commit({ id: 'org/cut', files: { ...files, 'adapter_model.safetensors': cut } })
    await expect(at.store.acquire(hubRef('org/cut'), as('t'))).rejects.toMatchObject({ code: 'adapter_refused' })
    expect(at.store.list()).toEqual([])
    expect(await readdir(join(at.cacheDirectory, 'content'))).toEqual([])
    expect(await readdir(join(at.cacheDirectory, 'incoming'))).toEqual([])
  })

  it('adapters beyond a budget are adapter_too_large', async () => {
    at.hub.commit({ id: 'org/wide', files: adapterFiles('wide-r48') })
    await at.reopen({ ramBytes: 100_000 })
    await expect(at.store.acquire(hubRef('org/wide'), as('t'))).rejects.toMatchObject({ code: 'adapter_too_large' })
    await at.reopen({ maxAdapterBytes: 100_000 })
    at.hub.transfers.length = 0
    at.hub.commit({ id: 'org/wider', files: adapterFiles('merged-cat') })
    await expect(at.store.acquire(hubRef('org/wider'), as('t'))).rejects.toMatchObject({ code: 'adapter_too_large' })
    expect(at.hub.transfers).toEqual([])
  })
})

describe('room', () => {
  /** Packed size of an adapter made by `variant('merge-a')`. */
  const packedBytes = async () => {
    await writeFiles(join(at.root, 'measure'), variant('merge-a', 100))
    return (await at.store.acquire(localRef('measure'), as('t'))).bytes
  }

  async function reopenFor(count: number): Promise<void> {
    const bytes = await packedBytes()
    await at.reopen({ ramBytes: bytes * count + 100 })
    for (let i = 0; i < 12; i++) {
      await writeFiles(join(at.root, `v${i}`), variant('merge-a', i))
    }
  }

  it('leased and pinned adapters stay; without any other left the answer is adapter_capacity', async () => {
    await reopenFor(2)
    const held = await at.store.acquire(localRef('v0'), as('t'))
    await at.store.pin(localRef('v1'), as('t'))
    await expect(at.store.acquire(localRef('v2'), as('t'))).rejects.toMatchObject({ code: 'adapter_capacity' })
    held.release()
    await at.store.prefetch(localRef('v2'), as('t'))
    expect(at.store.list().map((listing) => [listing.ref, listing.pinned])).toEqual(
      expect.arrayContaining([
        ['local:v1', true],
        ['local:v2', false],
      ]),
    )
    await at.store.unpin('local:v1')
    await at.store.prefetch(localRef('v3'), as('t'))
    await at.store.prefetch(localRef('v4'), as('t'))
    expect(inRam()).toEqual(['local:v3', 'local:v4'])
  })

  it('the least recently used goes first', async () => {
    await reopenFor(3)
    for (const name of ['v0', 'v1', 'v2', 'v0', 'v3']) {
      at.clock.now += 1000
      await at.store.prefetch(localRef(name), as('t'))
    }
    expect(inRam()).toEqual(['local:v0', 'local:v2', 'local:v3'])
  })

  it('a tenant who cycles through many adapters evicts his own', async () => {
    await reopenFor(4)
    await at.store.prefetch(localRef('v0'), as('modest'))
    for (let i = 1; i < 12; i++) {
      at.clock.now += 1000
      await at.store.prefetch(localRef(`v${i}`), as('greedy'))
    }
    expect(inRam()).toContain('local:v0')
    // Unused for long, it is nobody's share any more.
    at.clock.now += 60 * 60_000
    await at.store.prefetch(localRef('v1'), as('greedy'))
    expect(inRam()).not.toContain('local:v0')
  })

  it('of a disk that is full of what is in use nothing is taken, and what broke off stays counted', async () => {
    at.hub.commit({ id: 'org/wide', files: adapterFiles('wide-r48') })
    at.hub.breakTransfers(1)
    const leaving = new AbortController()
    const first = at.store.acquire(hubRef('org/wide'), as('t', undefined, { signal: leaving.signal }))
    await until(() => at.hub.transfers.some((line) => line.startsWith('org/wide/adapter_model')))
    leaving.abort()
    await expect(first).rejects.toThrow()
    const room = Object.values(adapterFiles('wide-r48')).reduce((sum, bytes) => sum + bytes.length, 0)
    await at.reopen({ diskBytes: room + 1000 })
    expect(await at.store.acquire(hubRef('org/wide'), as('t'))).toMatchObject({ cacheTier: 'remote' })
    expect(at.store.violations()).toEqual([])
  })

  it('many fetches and packed files at once stay within the disk’s budget together', async () => {
    const bytes = Object.values(variant('merge-a', 0)).reduce((sum, file) => sum + file.length, 0)
    await at.reopen({ diskBytes: 4 * bytes, ramBytes: 64 * 2 ** 20 })
    for (let i = 0; i < 12; i++) {
      at.hub.commit({ id: `org/n${i}`, files: variant('merge-a', i) })
    }
    const codes = new Set<string>()
    await Promise.all(
      Array.from({ length: 12 }, async (_, i) => {
        for (let round = 0; round < 3; round++) {
          const [lease] = await Promise.allSettled([at.store.acquire(hubRef(`org/n${(i + round) % 12}`), as(`t${i}`))])
          expect(at.store.violations()).toEqual([])
          codes.add(lease.status === 'fulfilled' ? 'ok' : (lease.reason as { code: string }).code)
        }
      }),
    )
    expect([...codes].every((code) => code === 'ok' || code === 'adapter_capacity')).toBe(true)
    expect(codes).toContain('ok')
  })

  it('what is in use in RAM is not the first to leave the disk, also by what the disk knows after a restart', async () => {
    await writeFiles(join(at.root, 'measure'), variant('merge-a', 100))
    await at.store.prefetch(localRef('measure'), as('t'))
    await at.store.close()
    const [packed] = (await diskFiles()).filter((path) => path.includes('/packed/'))
    const bytes = (await stat(packed!)).size
    await rm(packed!)
    await at.reopen({ diskBytes: 3 * bytes + 5000 })
    const use = async (name: string) => {
      at.clock.now += 120_000
      const { cacheTier, release } = await at.store.acquire(localRef(name), as('t'))
      release()
      return cacheTier
    }
    for (let i = 0; i < 5; i++) {
      await writeFiles(join(at.root, `v${i}`), variant('merge-a', i))
    }
    for (const name of ['v0', 'v1', 'v2', 'v0', 'v3']) {
      await use(name)
    }
    await at.reopen({ diskBytes: 3 * bytes + 5000 })
    expect(await use('v0')).toBe('disk')
    await at.reopen({ diskBytes: 3 * bytes + 5000 })
    await use('v4')
    await at.reopen({ diskBytes: 3 * bytes + 5000 })
    expect(await use('v0')).toBe('disk')
    expect(await use('v2')).toBe('remote')
  })

  it('a disk that can’t be written is adapter_capacity, which another node may do better, and nothing stays reserved', async () => {
    at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    await rm(join(at.cacheDirectory, 'incoming'), { recursive: true })
    await writeFile(join(at.cacheDirectory, 'incoming'), '')
    await expect(at.store.acquire(hubRef('org/a'), as('t'))).rejects.toMatchObject({ code: 'adapter_capacity' })
    await rm(join(at.cacheDirectory, 'incoming'))
    expect(await at.store.acquire(hubRef('org/a'), as('t'))).toMatchObject({ cacheTier: 'remote' })
  })

  it('the disk has its own budget', async () => {
    const size = Object.values(variant('merge-a', 0)).reduce((sum, bytes) => sum + bytes.length, 0)
    await at.reopen({ diskBytes: size * 5 })
    for (let i = 0; i < 9; i++) {
      at.clock.now += 1000
      at.hub.commit({ id: `org/d${i}`, files: variant('merge-a', i) })
      await at.store.prefetch(hubRef(`org/d${i}`), as('t'))
    }
    await at.reopen()
    const sizes = await Promise.all((await diskFiles()).map(async (path) => (await stat(path)).size))
    // Manifests and headers are a few KB beside the budgeted bytes.
    expect(sizes.reduce((sum, bytes) => sum + bytes, 0)).toBeLessThan(size * 5 + 50_000)
    const names = at.store.list().map((listing) => listing.ref.split('@')[0])
    expect(names).toContain('hub:org/d8')
    expect(names).not.toContain('hub:org/d0')
  })
})

describe('administration', () => {
  it('unload forgets an adapter, but not one that is in use or pinned', async () => {
    const commit = at.hub.commit({ id: 'org/a', files: adapterFiles('merge-a') })
    const name = `hub:org/a@${commit}`
    const lease = await at.store.acquire(hubRef('org/a'), as('t'))
    await expect(at.store.unload(name)).rejects.toMatchObject({ code: 'conflict' })
    lease.release()
    await at.store.pin(hubRef('org/a'), as('t'))
    await expect(at.store.unload(lease.digest)).rejects.toMatchObject({ code: 'conflict' })
    await at.store.unpin(lease.digest)
    expect(await at.store.unload(name)).toMatchObject({ ref: name, tier: 'remote' })
    expect(at.store.list()).toEqual([])
    expect(await readdir(join(at.cacheDirectory, 'content'))).toEqual([])
    await expect(at.store.unload(name)).rejects.toMatchObject({ code: 'adapter_not_found' })
    expect(await at.store.acquire(hubRef('org/a'), as('t'))).toMatchObject({ cacheTier: 'remote' })
  })

  it('preloads at the start, and fails loudly when it cannot', async () => {
    await writeFiles(join(at.root, 'always'), adapterFiles('merge-a'))
    await at.reopen({ preload: [{ selection: localRef('always'), options: as('operator'), pin: true }] })
    expect(at.store.list()).toMatchObject([{ ref: 'local:always', pinned: true, tier: 'ram' }])
    await expect(
      at.reopen({ preload: [{ selection: localRef('none'), options: as('operator') }] }),
    ).rejects.toMatchObject({
      code: 'adapter_not_found',
    })
  })

  it('pins hold over a restart, in RAM again before the store opens, whatever its home says', async () => {
    await writeFiles(join(at.root, 'local'), adapterFiles('merge-b'))
    const commit = at.hub.commit({ id: 'org/a', tokens: ['mine'], files: adapterFiles('merge-a') })
    await at.store.pin(hubRef('org/a'), as('t', 'mine'))
    await at.store.pin(localRef('local'), as('t'))
    at.hub.failRequests(1000, 503)
    const back: string[] = []
    const note = ({ ref, ...result }: { ref: string }) => back.push(`${ref} ${'packed' in result ? 'back' : 'lost'}`)
    await at.reopen({ onRestored: note, diskBytes: 1 })
    expect(back).toEqual(['hub:org/a back', 'local:local back'])
    expect(
      at.store
        .list()
        .map(({ ref, tier, pinned }) => [ref, tier, pinned])
        .sort(),
    ).toEqual([
      [`hub:org/a@${commit}`, 'ram', true],
      ['local:local', 'ram', true],
    ])
    await expect(at.store.unload(`hub:org/a@${commit}`)).rejects.toMatchObject({ code: 'conflict' })
    await at.store.unpin(`hub:org/a@${commit}`)
    await at.store.unpin('local:local')
    await at.reopen({ onRestored: note, diskBytes: 1 })
    expect(back).toHaveLength(2)
    expect(at.store.list()).toEqual([])
  })

  it('a pin whose content is nowhere is listed as such, said to be lost, and can be taken back', async () => {
    at.hub.commit({ id: 'org/a', tokens: ['mine'], files: adapterFiles('merge-a') })
    const { digest } = await at.store.pin(hubRef('org/a'), as('t', 'mine'))
    await at.store.close()
    for (const path of await diskFiles()) {
      if (!path.endsWith('pins.json')) {
        await rm(path)
      }
    }
    const lost = new Promise<object>((resolve) => {
      void at.reopen({ onRestored: resolve })
    })
    expect(await lost).toMatchObject({ ref: 'hub:org/a', error: { code: 'adapter_not_found' } })
    await until(() => at.store.list().length === 1)
    expect(at.store.list()).toMatchObject([{ ref: 'hub:org/a', digest, tier: 'remote', pinned: true, bytes: 0 }])
    // Whoever may read it brings it back, and it is pinned again.
    const lease = await at.store.acquire(hubRef('org/a'), as('t', 'mine'))
    lease.release()
    expect(at.store.list()).toMatchObject([{ digest, tier: 'ram', pinned: true }])
    await at.store.unpin(digest)
    expect(at.store.list()).toMatchObject([{ digest, tier: 'ram', pinned: false }])
  })

  it('a list of pins that can’t be read is none', async () => {
    await at.store.close()
    await writeFile(join(at.cacheDirectory, 'pins.json'), '[{"digest":"x"}]')
    await at.reopen()
    expect(at.store.list()).toEqual([])
  })

  it('takes nothing after it was closed, and says so', async () => {
    await at.store.close()
    await expect(at.store.acquire(localRef('x'), as('t'))).rejects.toMatchObject({ code: 'node_draining' })
  })
})

/** Everything below the cache directory. */
async function diskFiles(): Promise<string[]> {
  const entries = await readdir(at.cacheDirectory, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/** One bit near the end. */
async function damage(path: string): Promise<void> {
  const bytes = await readFile(path)
  bytes[bytes.length - 2]! ^= 64
  await writeFile(path, bytes)
}

/** Waits for something that another process of the event loop brings about. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    await new Promise((resolve) => setImmediate(resolve))
  }
}
