/**
 * The encoding thread from outside: one text at a time, each within a time limit. Started when there is a text for it, ended
 * when there has been none for a while; started anew after it died.
 */

import { RingletError } from '../../shared/errors.ts'
import { LazyThread } from '../lazy-thread.ts'
import { startWorkerThread } from '../worker-thread.ts'
import type { EncodingData, EncodingReply, EncodingRequest } from './encoding-thread.ts'

export interface ThreadEncoderLimits {
  /** A text that takes longer ends the thread. */
  textMs: number
  /** After so long without a text the thread ends, and its memory is free. */
  idleMs: number
  /** Heap of the thread. */
  maxHeapMiB: number
}

export const DEFAULT_THREAD_LIMITS: ThreadEncoderLimits = { textMs: 60_000, idleMs: 60_000, maxHeapMiB: 1024 }

/** Acts later, unless the returned function is called before. */
export type Later = (act: () => void, ms: number) => () => void

const later: Later = (act, ms) => {
  const timer = setTimeout(act, ms).unref()
  return () => clearTimeout(timer)
}

type Result = Int32Array | RingletError

export class ThreadEncoder {
  readonly #thread: LazyThread<EncodingReply>
  readonly #limits: ThreadEncoderLimits
  readonly #later: Later
  /** Ends the text in hand. */
  #finish: ((result: Result) => void) | undefined
  #stayAwake = (): void => {}
  #closed = false

  constructor(data: EncodingData, limits: Partial<ThreadEncoderLimits> = {}, doLater: Later = later) {
    this.#limits = { ...DEFAULT_THREAD_LIMITS, ...limits }
    this.#later = doLater
    const resourceLimits = { maxOldGenerationSizeMb: this.#limits.maxHeapMiB }
    this.#thread = new LazyThread({
      open: () =>
        startWorkerThread(new URL('./encoding-thread.ts', import.meta.url), { workerData: data, resourceLimits }),
      onReply: (reply) =>
        this.#finish?.(reply.kind === 'encoded' ? reply.tokens : new RingletError('internal', reply.message)),
      // The text in hand may have caused it.
      onLost: (cause) => {
        const lost = new RingletError('internal', 'the thread that tokenizes long texts ended', { cause })
        this.#finish?.(lost)
        return lost
      },
    })
  }

  /** Is there a thread, and its memory taken? */
  get running(): boolean {
    return this.#thread.running
  }

  /** Not before the text before has settled. */
  async encode(text: string, addSpecialTokens: boolean): Promise<number[]> {
    this.#stayAwake()
    try {
      const result = await this.#encode({ text, addSpecialTokens })
      if (result instanceof RingletError) {
        throw result
      }
      return Array.from(result)
    } finally {
      this.#finish = undefined
      this.#stayAwake = this.running ? this.#later(() => void this.#thread.drop(), this.#limits.idleMs) : () => {}
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#stayAwake()
    this.#finish?.(closed())
    await this.#thread.drop()
  }

  async #encode(request: EncodingRequest): Promise<Result> {
    if (this.#closed) {
      return closed()
    }
    const { textMs } = this.#limits
    let inTime = (): void => {}
    const result = new Promise<Result>((finish) => {
      this.#finish = finish
      inTime = this.#later(() => {
        void this.#thread.drop()
        finish(new RingletError('deadline_exceeded', `the text took longer than ${textMs} ms to tokenize`))
      }, textMs)
      this.#thread.start().then((worker) => worker.postMessage(request), finish)
    })
    return result.finally(inTime)
  }
}

function closed(): RingletError {
  return new RingletError('node_draining', 'the node is shutting down')
}
