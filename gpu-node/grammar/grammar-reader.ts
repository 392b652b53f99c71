/**
 * The reading thread from outside: one spec at a time, each within a time limit, replaced when a spec has broken it. Tenants
 * take turns: a spec may be made to take all of its time, and a hundred of one tenant's never stand before another's one.
 */

import { RingletError } from '../../shared/errors.ts'
import { FairPool } from '../adapters/store/fair-pool.ts'
import { LazyThread } from '../lazy-thread.ts'
import { startWorkerThread } from '../worker-thread.ts'
import { grammarInvalid } from './grammar-error.ts'
import type { ReaderData, ReadReply, ReadRequest } from './grammar-messages.ts'
import type { GrammarSpec, ReadGrammar } from './grammar-spec.ts'

export interface ReaderLimits {
  readMs: number
  maxHeapBytes: number
}

type Result = ReadGrammar | RingletError

export class GrammarReader {
  readonly #limits: ReaderLimits
  readonly #thread: LazyThread<ReadReply>
  /** Ends the spec in hand. */
  #finish: ((result: Result) => void) | undefined
  readonly #turns = new FairPool({ jobs: 1, jobsPerTenant: 1 })
  #serial = 0
  #closed = false

  constructor(limits: ReaderLimits) {
    this.#limits = limits
    const workerData: ReaderData = { maxHeapBytes: limits.maxHeapBytes }
    this.#thread = new LazyThread({
      open: () => startWorkerThread(new URL('./grammar-reader-thread.ts', import.meta.url), { workerData }),
      onReply: (reply) => this.#onReply(reply),
      // Out of memory or stack, which the spec in hand has caused.
      onLost: (cause) => {
        this.#finish?.(grammarInvalid('the grammar is too large or nested too deeply'))
        return new RingletError('internal', 'the grammar reader did not start', { cause })
      },
    })
  }

  read(spec: GrammarSpec, tenantId: string): Promise<ReadGrammar> {
    return new Promise((resolve, reject) => {
      this.#turns.enqueue(tenantId, () => this.#read(spec).then(resolve, reject))
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#finish?.(closed())
    await this.#thread.drop()
  }

  async #read(spec: GrammarSpec): Promise<ReadGrammar> {
    if (this.#closed) {
      throw closed()
    }
    const worker = await this.#thread.start()
    this.#serial += 1
    const request: ReadRequest = { id: this.#serial, spec }
    let timer: NodeJS.Timeout | undefined
    const result = await new Promise<Result>((finish) => {
      this.#finish = finish
      if (this.#closed) {
        finish(closed())
        return
      }
      timer = setTimeout(() => {
        void this.#thread.drop()
        finish(grammarInvalid(`the grammar took longer than ${this.#limits.readMs} ms to read`))
      }, this.#limits.readMs)
      worker.postMessage(request)
    })
    clearTimeout(timer)
    this.#finish = undefined
    if (result instanceof RingletError) {
      throw result
    }
    return result
  }

  #onReply(reply: Exclude<ReadReply, { kind: 'started' }>): void {
    if (reply.id !== this.#serial) {
      return
    }
    if (reply.kind === 'aborted') {
      void this.#thread.drop()
    }
    this.#finish?.(reply.kind === 'read' ? reply.grammar : grammarInvalid(reply.message))
  }
}

function closed(): RingletError {
  return new RingletError('node_draining', 'the node is shutting down')
}
