import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import type { TokenValidity } from '../../../edge/auth/in-force.ts'
import { watchRequest } from '../../../edge/auth/request-watch.ts'

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

const record: TokenValidity = { disabled: false, revokedAt: undefined, expiresAt: undefined }

/** A watched request whose token is being looked up when it comes to renew its lease, after twenty seconds. */
async function watched() {
  const lookups: ((found: TokenValidity) => void)[] = []
  let renewals = 0
  const stop = watchRequest({
    keyId: 'k',
    findWithin: () => new Promise((resolve) => lookups.push(resolve)),
    renewLease: async () => {
      renewals++
    },
    now: () => Date.now(),
    end: () => {
      throw new Error('the token is in force')
    },
  })
  await vi.advanceTimersByTimeAsync(20_000)
  return {
    stop,
    answer: async () => {
      for (const resolve of lookups.splice(0)) {
        resolve(record)
      }
      await vi.advanceTimersByTimeAsync(0)
      return renewals
    },
  }
}

test('a running request renews its lease', async () => {
  const request = await watched()
  expect(await request.answer()).toBe(1)
  request.stop()
})

test('a request that ends while its token is looked up does not bring its lease back', async () => {
  const request = await watched()
  request.stop()
  expect(await request.answer()).toBe(0)
})
