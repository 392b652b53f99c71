/**
 * One run for all who want the same thing at the same time. Each waits on his own: who leaves, leaves alone; the run ends
 * early only when nobody waits any more.
 */

import type { FairPool, PoolPlace } from './fair-pool.ts'

export interface Waiting<Progress> {
  tenantId: string
  signal: AbortSignal | undefined
  onProgress: ((progress: Progress) => void) | undefined
}

export interface Run<Progress> {
  /** Aborted when the last waiter has left. */
  signal: AbortSignal
  progress: (progress: Progress) => void
  /** Called when all waiters have taken what they take from the value, or the run has failed. */
  afterwards: (callback: () => void) => void
}

interface Waiter<Value, Progress> extends Waiting<Progress> {
  done: (outcome: { value: Value } | { error: unknown }) => void
}

interface Shared<Value, Progress> {
  waiters: Set<Waiter<Value, Progress>>
  abort: AbortController
  place: PoolPlace
}

export class SharedLoads<Value, Progress = never> {
  readonly #pool: FairPool
  readonly #shared = new Map<string, Shared<Value, Progress>>()
  /** Runs that have not ended, those included that nobody waits for any more: two for one key never overlap. */
  readonly #running = new Map<string, Promise<void>>()

  constructor(pool: FairPool) {
    this.#pool = pool
  }

  get size(): number {
    return this.#shared.size
  }

  /**
   * Joins the run for `key`, or starts it. `take` is called for each waiter before anything else happens to the value, so
   * that what it takes (a lease) can't be lost in between. `first` tells who started it.
   */
  join<Taken>(
    key: string,
    waiting: Waiting<Progress>,
    start: (run: Run<Progress>) => Promise<Value>,
    take: (value: Value) => Taken,
  ): { first: boolean; taken: Promise<Taken> } {
    waiting.signal?.throwIfAborted()
    const known = this.#shared.get(key)
    const shared = known ?? this.#begin(key, waiting.tenantId, start)
    if (known !== undefined) {
      known.place.alsoFor(waiting.tenantId)
    }
    return { first: known === undefined, taken: this.#wait(key, shared, waiting, take) }
  }

  /** Ends every run; their waiters get `reason`. */
  abortAll(reason: unknown): void {
    for (const shared of this.#shared.values()) {
      shared.abort.abort(reason)
    }
  }

  #begin(key: string, tenantId: string, start: (run: Run<Progress>) => Promise<Value>): Shared<Value, Progress> {
    const abort = new AbortController()
    const waiters = new Set<Waiter<Value, Progress>>()
    const callbacks: (() => void)[] = []
    const run: Run<Progress> = {
      signal: abort.signal,
      progress: (progress) => {
        for (const waiter of waiters) {
          waiter.onProgress?.(progress)
        }
      },
      afterwards: (callback) => callbacks.push(callback),
    }
    const end = (outcome: { value: Value } | { error: unknown }) => {
      if (this.#shared.get(key) === shared) {
        this.#shared.delete(key)
      }
      for (const waiter of [...waiters]) {
        waiter.done(outcome)
      }
      for (const callback of callbacks) {
        callback()
      }
    }
    const work = async () => {
      try {
        abort.signal.throwIfAborted()
        end({ value: await start(run) })
      } catch (error) {
        end({ error })
      }
    }
    const place = this.#pool.enqueue(tenantId, () => {
      const running = (this.#running.get(key) ?? Promise.resolve()).then(work)
      this.#running.set(key, running)
      return running.finally(() => {
        if (this.#running.get(key) === running) {
          this.#running.delete(key)
        }
      })
    })
    const shared: Shared<Value, Progress> = { waiters, abort, place }
    this.#shared.set(key, shared)
    return shared
  }

  #wait<Taken>(
    key: string,
    shared: Shared<Value, Progress>,
    waiting: Waiting<Progress>,
    take: (value: Value) => Taken,
  ): Promise<Taken> {
    const { signal } = waiting
    return new Promise<Taken>((resolve, reject) => {
      const leave = () => {
        shared.waiters.delete(waiter)
        signal?.removeEventListener('abort', left)
      }
      const left = () => {
        leave()
        reject(signal!.reason as Error)
        if (shared.waiters.size === 0 && this.#shared.get(key) === shared) {
          // The next caller starts afresh instead of joining a run that is ending.
          this.#shared.delete(key)
          shared.abort.abort(signal!.reason)
          shared.place.cancel()
        }
      }
      const waiter: Waiter<Value, Progress> = {
        ...waiting,
        done: (outcome) => {
          leave()
          if ('error' in outcome) {
            reject(outcome.error as Error)
            return
          }
          try {
            resolve(take(outcome.value))
          } catch (error) {
            reject(error as Error)
          }
        },
      }
      shared.waiters.add(waiter)
      signal?.addEventListener('abort', left, { once: true })
    })
  }
}
