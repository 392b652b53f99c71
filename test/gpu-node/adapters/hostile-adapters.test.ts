import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { RingletError } from '../../../shared/errors.ts'
import { configOf, mutate, mutation } from './mutations.ts'
import { as, hubRef, openHarness, type StoreHarness } from './store-harness.ts'

let at: StoreHarness

beforeAll(async () => {
  at = await openHarness()
})

afterAll(() => at.close())

const BATCH = 20

/** All that a store has: what it lists with its leases, what it counts, and every file below its directory. */
async function state() {
  const entries = await readdir(at.cacheDirectory, { recursive: true, withFileTypes: true })
  return {
    listed: at.store.list(),
    violations: at.store.violations(),
    paths: entries.map((entry) => join(entry.parentPath, entry.name)).sort(),
  }
}

it('1,000 mutated adapters are refused with a typed error or served, and leave nothing behind', async () => {
  const empty = await state()
  let refused = 0
  let round = 0
  await fc.assert(
    fc.asyncProperty(fc.array(mutation, { minLength: BATCH, maxLength: BATCH }), async (plans) => {
      const ids = plans.map((plan) => {
        const id = `org/m${round++}`
        const [name, bytes] = mutate(plan)
        at.hub.commit({ id, files: { ...configOf(plan), [name]: bytes } })
        return id
      })
      await Promise.all(
        ids.map(async (id) => {
          try {
            const lease = await at.store.acquire(hubRef(id), as('t'))
            lease.release()
          } catch (error) {
            expect(error).toBeInstanceOf(RingletError)
            expect(error).toMatchObject({ code: 'adapter_refused' })
            refused++
          }
        }),
      )
      for (const listing of at.store.list()) {
        expect(listing.leases).toBe(0)
        await at.store.unload(listing.digest)
      }
      expect(await state()).toEqual(empty)
      for (const id of ids) {
        at.hub.remove(id)
      }
    }),
    { numRuns: 1_000 / BATCH, seed: 8 },
  )
  expect(refused).toBeGreaterThan(300)
}, 120_000)
