import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { chooseVictims, type Evictable } from '../../../gpu-node/adapters/store/eviction.ts'
import { FairPool, oneLeftFree } from '../../../gpu-node/adapters/store/fair-pool.ts'
import { RamTier } from '../../../gpu-node/adapters/store/ram-tier.ts'
import { SharedLoads } from '../../../gpu-node/adapters/store/shared-loads.ts'
import type { PackedAdapter } from '../../../gpu-node/model/packed-adapter.ts'

const entry = (key: string, bytes: number, lastUsed: number, tenantId: string, held = false): Evictable => ({
  key,
  bytes,
  lastUsed,
  tenantId,
  held,
})
const wanted = { budgetBytes: 100, bytes: 10, tenantId: 'a', now: 1_000, staleAfterMs: 900 }

describe('what leaves to make room', () => {
  it('nothing while there is room, whoever holds how much', () => {
    expect(chooseVictims([entry('x', 90, 500, 'a')], wanted)).toEqual([])
  })

  it('first what nobody used for long, then the largest tenant’s oldest', () => {
    const entries = [
      entry('a1', 30, 300, 'a'),
      entry('a2', 30, 400, 'a'),
      entry('b1', 30, 200, 'b'),
      entry('c1', 10, 50, 'c'),
    ]
    expect(chooseVictims(entries, wanted)).toEqual(['c1'])
    expect(chooseVictims(entries, { ...wanted, bytes: 40 })).toEqual(['c1', 'a1'])
  })

  it('the newcomer’s bytes count as his', () => {
    const entries = [entry('a1', 40, 150, 'a'), entry('b1', 50, 151, 'b')]
    expect(chooseVictims(entries, { ...wanted, bytes: 20 })).toEqual(['a1'])
    expect(chooseVictims(entries, { ...wanted, bytes: 20, tenantId: 'c' })).toEqual(['b1'])
  })

  it('never what is held; and nothing at all when that would not be enough', () => {
    const entries = [entry('a1', 60, 100, 'a', true), entry('b1', 30, 200, 'b')]
    expect(chooseVictims(entries, { ...wanted, bytes: 30 })).toEqual(['b1'])
    expect(chooseVictims(entries, { ...wanted, bytes: 50 })).toBeUndefined()
  })

  it('holds for any entries: enough room, no more victims than needed, fair shares untouched', () => {
    const entries = fc.array(
      fc.record({
        bytes: fc.integer({ min: 1, max: 40 }),
        lastUsed: fc.integer({ min: 500, max: 999 }),
        tenantId: fc.constantFrom('a', 'b', 'c'),
        held: fc.boolean(),
      }),
      { maxLength: 12 },
    )
    fc.assert(
      fc.property(entries, fc.integer({ min: 1, max: 100 }), (list, bytes) => {
        const all = list.map((it, i) => ({ ...it, key: String(i) }))
        const victims = chooseVictims(all, { ...wanted, bytes })
        const size = (keys: Set<string>) => all.filter((it) => keys.has(it.key)).reduce((sum, it) => sum + it.bytes, 0)
        const total = size(new Set(all.map((it) => it.key)))
        const free = size(new Set(all.filter((it) => !it.held).map((it) => it.key)))
        expect(victims === undefined).toBe(total + bytes > 100 && total - free + bytes > 100)
        if (victims === undefined) {
          return
        }
        const gone = new Set(victims)
        expect(total - size(gone) + bytes <= 100 || victims.length === 0).toBe(true)
        expect(victims.every((key) => !all[Number(key)]!.held)).toBe(true)
        const last = victims.at(-1)
        if (last !== undefined) {
          gone.delete(last)
          expect(total - size(gone) + bytes).toBeGreaterThan(100)
        }
      }),
      { numRuns: 500, seed: 9 },
    )
  })
})

describe('RAM tier', () => {
  const packed = (digest: string, bytes: number): PackedAdapter => ({
    digest,
    rank: 1,
    bytes,
    parts: {},
    layout: 'graph',
    groups: {},
    features: { embedding: false, head: false, bias: false, magnitude: false },
  })

  it('stays within its budget and keeps what is leased or pinned, whatever is asked of it', () => {
    const step = fc.record({
      act: fc.constantFrom('load', 'load', 'load', 'lease', 'release', 'pin', 'unpin'),
      which: fc.nat(9),
      bytes: fc.integer({ min: 1, max: 60 }),
      tenantId: fc.constantFrom('a', 'b', 'c'),
    })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        let now = 0
        const evicted: string[] = []
        const pinned = new Set<string>()
        const tier = new RamTier({
          budgetBytes: 100,
          staleAfterMs: 20,
          now: () => now,
          isPinned: (digest) => pinned.has(digest),
          onEvict: (digest) => evicted.push(digest),
        })
        const leases = new Map<string, (() => void)[]>()
        for (const { act, which, bytes, tenantId } of steps) {
          now++
          const digest = `d${which}`
          const held = leases.get(digest) ?? []
          if (act === 'load') {
            try {
              tier.insert(packed(digest, bytes), tenantId)
            } catch (error) {
              expect(error).toMatchObject({ code: 'adapter_capacity' })
            }
          } else if (act === 'lease') {
            const lease = tier.lease(digest, tenantId)
            leases.set(digest, lease === undefined ? held : [...held, lease.release])
          } else if (act === 'release') {
            held.pop()?.()
          } else if (act === 'pin' && tier.get(digest) !== undefined) {
            pinned.add(digest)
          } else if (act === 'unpin') {
            pinned.delete(digest)
          }
          expect(tier.violations()).toEqual([])
          for (const kept of [...pinned, ...[...leases].filter(([, all]) => all.length > 0).map(([key]) => key)]) {
            expect(tier.get(kept)).toBeDefined()
          }
          for (const [key, all] of leases) {
            expect(tier.get(key)?.leases ?? 0).toBe(all.length)
          }
        }
        expect(evicted.every((digest) => !pinned.has(digest) || tier.get(digest) !== undefined)).toBe(true)
      }),
      { numRuns: 300, seed: 11 },
    )
  })
})

describe('fair pool', () => {
  it('tenants take turns, and none has more places than its limit', async () => {
    const pool = new FairPool({ jobs: 3, jobsPerTenant: 2 })
    const order: string[] = []
    const ends: (() => void)[] = []
    const job = (tenant: string) =>
      pool.enqueue(tenant, () => {
        order.push(tenant)
        return new Promise((resolve) => ends.push(resolve))
      })
    for (let i = 0; i < 4; i++) {
      job('greedy')
    }
    job('modest')
    job('third')
    expect(order).toEqual(['greedy', 'greedy', 'modest'])
    ends[0]!()
    await new Promise((resolve) => setImmediate(resolve))
    expect(order.slice(3)).toEqual(['third'])
    ends[1]!()
    ends[2]!()
    await new Promise((resolve) => setImmediate(resolve))
    expect(order.slice(4)).toEqual(['greedy', 'greedy'])
  })

  it.each([1, 2, 4])('of %i loader threads one stays free for another tenant, where there is more than one', (jobs) => {
    const pool = new FairPool(oneLeftFree(jobs))
    const order: string[] = []
    const job = (tenant: string) =>
      pool.enqueue(tenant, () => {
        order.push(tenant)
        return new Promise(() => {})
      })
    for (let i = 0; i < 8; i++) {
      job('greedy')
    }
    job('modest')
    expect(order).toEqual([...Array(Math.max(1, jobs - 1)).fill('greedy'), ...(jobs > 1 ? ['modest'] : [])])
  })

  it('a job that a second tenant waits for runs in whichever turn comes first', async () => {
    const pool = new FairPool({ jobs: 1, jobsPerTenant: 1 })
    const order: string[] = []
    let end = () => {}
    pool.enqueue(
      'x',
      () =>
        new Promise((resolve) => {
          end = resolve
        }),
    )
    for (let i = 0; i < 3; i++) {
      pool.enqueue('greedy', async () => void order.push(`greedy ${i}`))
    }
    const shared = pool.enqueue('greedy', async () => void order.push('shared'))
    shared.alsoFor('modest')
    end()
    await new Promise((resolve) => setImmediate(resolve))
    expect(order.indexOf('shared')).toBeLessThan(2)
    expect(order.filter((it) => it === 'shared')).toHaveLength(1)
  })
})

describe('shared loads', () => {
  const waiting = (signal?: AbortSignal) => ({ tenantId: 't', signal, onProgress: undefined })

  it('one run for all; each takes his own; then a new run', async () => {
    const loads = new SharedLoads<number>(new FairPool({ jobs: 1, jobsPerTenant: 1 }))
    let runs = 0
    const start = async () => ++runs
    const joined = Array.from({ length: 5 }, (_, i) => loads.join('k', waiting(), start, (value) => `${value}-${i}`))
    expect(joined.map(({ first }) => first)).toEqual([true, false, false, false, false])
    expect(await Promise.all(joined.map(({ taken }) => taken))).toEqual(['1-0', '1-1', '1-2', '1-3', '1-4'])
    expect(await loads.join('k', waiting(), start, (value) => value).taken).toBe(2)
    expect(loads.size).toBe(0)
  })

  it('what is held for the waiters is given up only after they have taken theirs', async () => {
    const loads = new SharedLoads<string>(new FairPool({ jobs: 1, jobsPerTenant: 1 }))
    const order: string[] = []
    const start = async (run: { afterwards: (callback: () => void) => void }) => {
      run.afterwards(() => order.push('given up'))
      return 'value'
    }
    await Promise.all([1, 2].map((n) => loads.join('k', waiting(), start, () => order.push(`taken ${n}`)).taken))
    expect(order).toEqual(['taken 1', 'taken 2', 'given up'])
  })

  it('ends when the last has left, and a newcomer waits for that end before the next run', async () => {
    const loads = new SharedLoads<string>(new FairPool({ jobs: 2, jobsPerTenant: 2 }))
    const order: string[] = []
    let go = () => {}
    const leaving = new AbortController()
    const first = loads.join(
      'k',
      waiting(leaving.signal),
      async ({ signal }) => {
        await new Promise<void>((resolve) => {
          go = resolve
        })
        order.push(`first ends, aborted: ${signal.aborted}`)
        return 'first'
      },
      (value) => value,
    )
    await new Promise((resolve) => setImmediate(resolve))
    leaving.abort(new Error('left'))
    await expect(first.taken).rejects.toThrow('left')
    const second = loads.join(
      'k',
      waiting(),
      async () => {
        order.push('second runs')
        return 'second'
      },
      (value) => value,
    )
    expect(second.first).toBe(true)
    go()
    expect(await second.taken).toBe('second')
    expect(order).toEqual(['first ends, aborted: true', 'second runs'])
  })
})
