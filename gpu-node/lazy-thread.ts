/** A worker thread that is started when it is first needed, and anew after it ended. Its first message is `started`. */

import type { Worker } from 'node:worker_threads'
import { RingletError } from '../shared/errors.ts'

interface Message {
  kind: string
}

export interface LazyThreadHooks<Reply extends Message> {
  open: () => Worker
  onReply: (reply: Exclude<Reply, { kind: 'started' }>) => void
  /** It ended by itself; returns why, which `start` rejects with where it had not started yet. */
  onLost: (cause: unknown) => Error
}

export class LazyThread<Reply extends Message> {
  readonly #hooks: LazyThreadHooks<Reply>
  #thread: { worker: Worker; started: Promise<Worker> } | undefined

  constructor(hooks: LazyThreadHooks<Reply>) {
    this.#hooks = hooks
  }

  get running(): boolean {
    return this.#thread !== undefined
  }

  start(): Promise<Worker> {
    this.#thread ??= this.#open()
    return this.#thread.started
  }

  /** Ends it; the hooks hear no more of it. */
  async drop(): Promise<void> {
    const worker = this.#thread?.worker
    this.#thread = undefined
    await worker?.terminate()
  }

  #open(): { worker: Worker; started: Promise<Worker> } {
    const worker = this.#hooks.open()
    worker.unref()
    const started = new Promise<Worker>((resolve, reject) => {
      worker.on('message', (reply: Reply) => {
        if (reply.kind === 'started') {
          resolve(worker)
        } else if (worker === this.#thread?.worker) {
          this.#hooks.onReply(reply as Exclude<Reply, { kind: 'started' }>)
        }
      })
      const onLost = (cause?: unknown): void => {
        if (worker === this.#thread?.worker) {
          this.#thread = undefined
          reject(this.#hooks.onLost(cause))
        } else {
          reject(new RingletError('internal', 'the thread was ended before it had started', { cause }))
        }
      }
      worker.on('error', onLost)
      worker.on('exit', onLost)
    })
    return { worker, started }
  }
}
