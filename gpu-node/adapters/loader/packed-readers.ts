/**
 * Threads that read packed files, a large file by all of them. Apart from the loader threads: these answer requests whose
 * adapter is ready but for a few milliseconds, so they run at the process's own priority and never wait behind packing.
 */

import type { Worker } from 'node:worker_threads'
import { startWorkerThread } from '../../worker-thread.ts'
import { DamagedContentError } from './damaged-content.ts'
import type { PackedHeader, ReadPackedJob } from './packed-format.ts'
import type { ReaderReply } from './reader-thread.ts'

/** For one thread: below this, asking a second one costs more than it saves. */
const MIN_PART_BYTES = 4 * 1024 * 1024

interface Waiting {
  resolve: (header: string) => void
  reject: (error: Error) => void
}

export class PackedReaders {
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

  /** The data goes into `buffer`, if there is one; returns the header. Throws DamagedContentError. */
  async read(path: string, buffer?: SharedArrayBuffer): Promise<PackedHeader> {
    const wanted = Math.ceil((buffer?.byteLength ?? 0) / MIN_PART_BYTES)
    const parts = Math.max(1, Math.min(this.#threads, wanted))
    const headers = await Promise.all(
      Array.from({ length: parts }, (_, part) => this.#ask({ path, buffer, part, parts })),
    )
    return JSON.parse(headers[0]!) as PackedHeader
  }

  async close(): Promise<void> {
    this.#broken ??= new Error('the adapter store is closed')
    await Promise.all(this.#workers.map((worker) => worker.terminate()))
  }

  #ask(job: ReadPackedJob): Promise<string> {
    if (this.#broken !== undefined) {
      return Promise.reject(this.#broken)
    }
    if (this.#workers.length === 0) {
      this.#workers = Array.from({ length: this.#threads }, () => this.#start())
    }
    const id = this.#nextId++
    const worker = this.#workers[id % this.#workers.length]!
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      worker.postMessage({ id, job })
    })
  }

  #start(): Worker {
    const worker = startWorkerThread(new URL('./reader-thread.ts', import.meta.url))
    worker.on('message', (reply: ReaderReply) => this.#answer(reply))
    worker.on('error', (error: Error) => this.#break(error))
    worker.on('exit', () => this.#break(new Error('a thread that reads packed adapters has ended')))
    return worker
  }

  #answer(reply: ReaderReply): void {
    const waiting = this.#waiting.get(reply.id)
    this.#waiting.delete(reply.id)
    if ('header' in reply) {
      waiting?.resolve(reply.header)
    } else if ('damaged' in reply) {
      waiting?.reject(new DamagedContentError('the packed file is not what was written'))
    } else {
      waiting?.reject(new Error(reply.failure))
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
