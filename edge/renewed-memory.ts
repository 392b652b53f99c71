/**
 * What a slow store said, remembered for seconds by an isolate. From one age on an answer is renewed behind the request that
 * uses it, from a greater one it is used no more: what is asked for often is never waited for, and is never older than that.
 */

import { LRUCache } from 'lru-cache'

export interface RenewedMemoryOptions<Value> {
  /** `undefined` is an answer too, and remembered. */
  read: (key: string) => Promise<Value | undefined>
  now: () => number
  renewAgeMs: number
  mostAgeMs: number
  mostEntries: number
}

export interface RenewedMemory<Value> {
  /** `defer` keeps the request's context alive for a renewal in the background. */
  find(key: string, defer: (work: Promise<unknown>) => void): Promise<Value | undefined>
  /** An answer no older than `maxAgeMs`. */
  findWithin(key: string, maxAgeMs: number): Promise<Value | undefined>
  /** After a change made here. */
  forget(key: string): void
}

interface Remembered<Value> {
  value: Value | undefined
  readAt: number
  renewing: boolean
}

/** Holds plain data alone: one request must not wait for another's I/O in workerd. */
export function createRenewedMemory<Value>(options: RenewedMemoryOptions<Value>): RenewedMemory<Value> {
  const { now, renewAgeMs, mostAgeMs } = options
  const remembered = new LRUCache<string, Remembered<Value>>({ max: options.mostEntries })

  async function read(key: string): Promise<Value | undefined> {
    // The answer may be as old as the question.
    const readAt = now()
    const value = await options.read(key)
    remembered.set(key, { value, readAt, renewing: false })
    return value
  }

  async function findWithin(key: string, maxAgeMs: number): Promise<Value | undefined> {
    const known = remembered.get(key)
    return known !== undefined && now() - known.readAt <= maxAgeMs ? known.value : read(key)
  }

  return {
    findWithin,
    forget: (key) => {
      remembered.delete(key)
    },
    find(key, defer) {
      const known = remembered.get(key)
      const age = known === undefined ? 0 : now() - known.readAt
      if (known !== undefined && !known.renewing && age > renewAgeMs && age <= mostAgeMs) {
        known.renewing = true
        // A failed renewal leaves the old answer, which then ages out and is read in the foreground.
        defer(
          read(key).catch(() => {
            known.renewing = false
          }),
        )
      }
      return findWithin(key, mostAgeMs)
    },
  }
}
