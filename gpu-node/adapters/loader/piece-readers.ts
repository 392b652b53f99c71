/**
 * Threads that read packed files, each file by all of them. Apart from the loader threads: these answer requests whose
 * adapter is ready but for a few milliseconds, so they run at the process's own priority and never wait behind packing.
 */

import type { Worker } from 'node:worker_threads'
import { startWorkerThread } from '../../worker-thread.ts'
import { DamagedContentError } from './damaged-content.ts'
import type { PieceReply } from './piece-thread.ts'
import type { ReadPiecesJob } from './read-pieces.ts'

/** For one thread: below this, asking a second one costs more than it saves. */
const MIN_PIECES = 16

interface Waiting {
  resolve: () => void
  reject: (error: Error) => void
}

export class PieceReaders {
  readonly #threads: number
  /** Started with the first file. */
  #workers: Worker[] = []
  readonly #waiting = new Map<number, Waiting>()
  #nextId = 1
  /** Why a thread ended; its kind reads files and nothing else, so another would end the same way. */
  #broken: Error | undefined

  constructor(threads: number) {
    this.#threads = threads
  }

  /** Throws DamagedContentError. */
  async read(job: ReadPiecesJob): Promise<void> {
    if (this.#workers.length === 0) {
      this.#workers = Array.from({ length: this.#threads }, () => this.#start())
    }
    const share = Math.max(MIN_PIECES, Math.ceil(job.pieces.length / this.#threads))
    const shares: Promise<void>[] = []
    for (let at = 0; at < job.pieces.length; at += share) {
      shares.push(this.#ask({ ...job, first: job.first + at, pieces: job.pieces.slice(at, at + share) }))
    }
    await Promise.all(shares)
  }

  async close(): Promise<void> {
    this.#broken ??= new Error('the adapter store is closed')
    await Promise.all(this.#workers.map((worker) => worker.terminate()))
  }

  #start(): Worker {
    const worker = startWorkerThread(new URL('./piece-thread.ts', import.meta.url))
    worker.on('message', (reply: PieceReply) => this.#answer(reply))
    worker.on('error', (error: Error) => this.#break(error))
    worker.on('exit', () => this.#break(new Error('a thread that reads packed adapters has ended')))
    return worker
  }

  #ask(job: ReadPiecesJob): Promise<void> {
    if (this.#broken !== undefined) {
      return Promise.reject(this.#broken)
    }
    const id = this.#nextId++
    const worker = this.#workers[id % this.#workers.length]!
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      worker.postMessage({ id, job })
    })
  }

  #answer(reply: PieceReply): void {
    const waiting = this.#waiting.get(reply.id)
    this.#waiting.delete(reply.id)
    if ('failure' in reply) {
      waiting?.reject(new Error(reply.failure))
    } else if (reply.outcome === 'damaged') {
      waiting?.reject(new DamagedContentError('the packed file is not what was written'))
    } else {
      waiting?.resolve()
    }
  }

  #break(error: Error): void {
    this.#broken ??= error
    for (const { reject } of this.#waiting.values()) {
      reject(this.#broken)
    }
    this.#waiting.clear()
  }
}
