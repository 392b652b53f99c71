// Running streams and the time between two of their tokens, measured in a thread of its own.

import type { Worker } from 'node:worker_threads'
import { startWorkerThread } from '../gpu-node/worker-thread.ts'

export interface StreamRequest {
  url: string
  headers: Record<string, string>
  body: string
}

export type ToStreams = { kind: 'start'; requests: StreamRequest[] } | { kind: 'clear' } | { kind: 'stop' }
export type FromStreams =
  | { kind: 'begun' }
  | { kind: 'pauses'; pauses: number[]; ended: number }
  | { kind: 'failed'; message: string }

export class StreamClients {
  readonly #worker: Worker

  constructor() {
    this.#worker = startWorkerThread(new URL('./stream-thread.ts', import.meta.url))
  }

  /** Resolves when each has its first tokens; pauses count from then on. */
  async start(requests: StreamRequest[]): Promise<void> {
    this.#post({ kind: 'start', requests })
    await this.#next('begun')
    this.#post({ kind: 'clear' })
  }

  /** Ms between two tokens of a stream. Throws when one has ended by itself. */
  async stop(): Promise<number[]> {
    this.#post({ kind: 'stop' })
    const { pauses, ended } = await this.#next('pauses')
    if (ended > 0) {
      throw new Error(`${ended} streams ended before what they ran beside did`)
    }
    return pauses
  }

  async close(): Promise<void> {
    await this.#worker.terminate()
  }

  #post(message: ToStreams): void {
    this.#worker.postMessage(message)
  }

  #next<Kind extends FromStreams['kind']>(kind: Kind): Promise<Extract<FromStreams, { kind: Kind }>> {
    return new Promise((resolve, reject) => {
      const onMessage = (message: FromStreams) => {
        this.#worker.off('error', reject)
        if (message.kind === kind) {
          resolve(message as Extract<FromStreams, { kind: Kind }>)
        } else {
          reject(new Error(message.kind === 'failed' ? message.message : `unexpected ${message.kind}`))
        }
      }
      this.#worker.once('message', onMessage).once('error', reject)
    })
  }
}
