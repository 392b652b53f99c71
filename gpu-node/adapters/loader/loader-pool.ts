/** Loader threads from the main thread's side: each job to a free thread, with a time limit; a thread that hangs is replaced. */

import type { Worker } from 'node:worker_threads'
import { RingletError } from '../../../shared/errors.ts'
import { startWorkerThread } from '../../worker-thread.ts'
import { DamagedContentError } from './damaged-content.ts'
import type { LoaderInit, LoaderReady, LoaderReply, LoadJob, LoadResult } from './load-job.ts'

export interface LoaderPoolOptions extends LoaderInit {
  threads: number
  /** Longest time for one job; a file can be made to take for ever. */
  timeoutMs: number
}

/** JavaScript heap of a thread; tensors lie outside of it. A file whose description alone needs more is refused. */
const HEAP_MB = 512

interface Thread {
  worker: Worker
  started: boolean
  ready: Promise<LoaderReady>
  job: { id: number; settle: (reply: LoaderReply | { id: number; error: Error }) => void } | undefined
}

export class LoaderPool {
  readonly #options: LoaderPoolOptions
  readonly #threads: Thread[] = []
  readonly #waiting: ((thread: Thread) => void)[] = []
  #nextId = 1
  #closed = false
  /** Why a thread could not even start (the base can't be read): another would not either. */
  #broken: Error | undefined

  constructor(options: LoaderPoolOptions) {
    this.#options = options
    for (let i = 0; i < options.threads; i++) {
      this.#threads.push(this.#start())
    }
  }

  /** When all threads have opened the base checkpoint; throws what kept them from it. */
  async ready(): Promise<LoaderReady> {
    const [first] = await Promise.all(this.#threads.map((thread) => thread.ready))
    return first!
  }

  /** Throws `RingletError` for refusals, DamagedContentError, or what broke. */
  async run(job: LoadJob): Promise<LoadResult> {
    const thread = await this.#free()
    if (this.#broken !== undefined) {
      thread.job = undefined
      throw this.#broken
    }
    const id = this.#nextId++
    const reply = await new Promise<LoaderReply | { id: number; error: Error }>((settle) => {
      const timer = setTimeout(() => {
        const seconds = this.#options.timeoutMs / 1000
        const error = new RingletError('adapter_refused', `reading the adapter took more than ${seconds} s`)
        this.#replace(thread, error)
      }, this.#options.timeoutMs)
      thread.job = {
        id,
        settle: (answer) => {
          clearTimeout(timer)
          settle(answer)
        },
      }
      thread.ready.then(
        () => thread.worker.postMessage({ id, job }),
        // The thread's end settles the job.
        () => undefined,
      )
    })
    return toResult(reply)
  }

  async close(): Promise<void> {
    this.#closed = true
    await Promise.all(this.#threads.map((thread) => thread.worker.terminate()))
  }

  #start(): Thread {
    const { baseDirectory, baseName, limits, adapterLayout } = this.#options
    const workerData: LoaderInit = {
      baseDirectory,
      limits,
      adapterLayout,
      ...(baseName === undefined ? {} : { baseName }),
    }
    const worker = startWorkerThread(new URL('./loader-thread.ts', import.meta.url), {
      workerData,
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MB },
    })
    const thread: Thread = {
      worker,
      started: false,
      job: undefined,
      ready: new Promise((resolve, reject) => {
        worker.once('error', reject)
        worker.once('message', ({ ready }: { ready: LoaderReady }) => resolve(ready))
      }),
    }
    // Seen by `ready()`; without it, by the first job.
    thread.ready.catch(() => undefined)
    worker.on('message', (reply: LoaderReply | { ready: LoaderReady }) => {
      if ('ready' in reply) {
        thread.started = true
      } else if (thread.job?.id === reply.id) {
        this.#finish(thread, reply)
      }
    })
    worker.on('error', (error: Error) => this.#replace(thread, toCrash(error)))
    worker.on('exit', () => this.#replace(thread, new Error('a loader thread ended')))
    return thread
  }

  #free(): Promise<Thread> {
    const idle = this.#threads.find((thread) => thread.job === undefined)
    if (idle !== undefined) {
      // Taken before anybody else looks.
      idle.job = { id: 0, settle: () => undefined }
      return Promise.resolve(idle)
    }
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #finish(thread: Thread, reply: LoaderReply | { id: number; error: Error }): void {
    const { job } = thread
    thread.job = undefined
    this.#handOn(thread)
    job?.settle(reply)
  }

  #handOn(thread: Thread): void {
    const next = this.#waiting.shift()
    if (next !== undefined) {
      thread.job = { id: 0, settle: () => undefined }
      next(thread)
    }
  }

  /** Ends the thread's job with `error` and puts a new thread in its place. */
  #replace(thread: Thread, error: Error): void {
    const at = this.#threads.indexOf(thread)
    if (at < 0) {
      return
    }
    const { job } = thread
    thread.job = undefined
    void thread.worker.terminate()
    if (!thread.started && !this.#closed) {
      this.#broken ??= error
      for (const waiting of this.#waiting.splice(0)) {
        waiting(thread)
      }
    } else if (this.#closed) {
      this.#threads.splice(at, 1)
    } else {
      const fresh = this.#start()
      this.#threads[at] = fresh
      this.#handOn(fresh)
    }
    job?.settle({ id: job.id, error })
  }
}

function toCrash(error: Error): Error {
  return (error as NodeJS.ErrnoException).code === 'ERR_WORKER_OUT_OF_MEMORY'
    ? new RingletError('adapter_refused', `describing the adapter needs more than ${HEAP_MB} MB`)
    : error
}

function toResult(reply: LoaderReply | { id: number; error: Error }): LoadResult {
  if ('result' in reply) {
    return reply.result
  }
  if ('refusal' in reply) {
    throw new RingletError(reply.refusal.code, reply.refusal.message)
  }
  if ('damaged' in reply) {
    const { digest } = reply
    throw new DamagedContentError('the files are damaged', digest === undefined ? {} : { digest })
  }
  throw 'error' in reply ? reply.error : new Error(reply.failure)
}
