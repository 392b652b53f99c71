/** One matcher thread from outside: what it has compiled, who uses it, and its end. */

import { MessageChannel, type MessagePort, type Worker } from 'node:worker_threads'
import { RingletError } from '../../shared/errors.ts'
import { startWorkerThread } from '../worker-thread.ts'
import { grammarInvalid } from './grammar-error.ts'
import {
  type CompileAborted,
  type CompileReply,
  type MatcherData,
  type MatcherReply,
  type MatcherRequest,
  toGrammarId,
} from './grammar-messages.ts'
import type { ReadGrammar } from './grammar-spec.ts'
import type { MatcherView } from './matcher-choice.ts'

export interface CompiledEntry {
  grammarId: string
  leases: number
}

export class Matcher implements MatcherView {
  readonly id: number
  /** By key, least recently used first. */
  readonly grammars = new Map<string, CompiledEntry>()
  readonly started: Promise<void>
  compiling: string | undefined
  leases = 0
  lastUsed = 0
  heapBytes = 0
  readonly #worker: Worker
  #serial = 0
  #hasStarted = false
  #onCompiled: ((reply: CompileReply | { kind: 'lost' }) => void) | undefined

  /** `onLost`: the thread has ended, by itself or through `close`. */
  constructor(id: number, data: MatcherData, onLost: (matcher: Matcher) => void) {
    this.id = id
    this.#worker = startWorkerThread(new URL('./matcher-thread.ts', import.meta.url), { workerData: data })
    this.#worker.unref()
    this.started = new Promise((resolve) => {
      this.#worker.on('message', (reply: MatcherReply) => {
        if (reply.kind === 'started') {
          this.#hasStarted = true
          resolve()
        } else {
          this.#onCompiled?.(reply)
        }
      })
      // The thread's end is reported once, by `exit`; `error` only says why.
      this.#worker.on('error', () => undefined)
      this.#worker.on('exit', () => {
        resolve()
        this.#onCompiled?.({ kind: 'lost' })
        onLost(this)
      })
    })
  }

  /** A port for the engine, through which it begins sequences here. */
  connect(): MessagePort {
    const { port1, port2 } = new MessageChannel()
    this.#post({ kind: 'engine', port: port1 }, [port1])
    return port2
  }

  /** Nothing may run in the thread. Rejects with the caller's error; the thread is lost then. */
  async compile(key: string, { ebnf, lengths }: ReadGrammar, limitMs: number): Promise<{ compileMs: number }> {
    this.#serial += 1
    const grammarId = toGrammarId(this.id, this.#serial)
    this.compiling = key
    let timer: NodeJS.Timeout | undefined
    await this.started
    if (!this.#hasStarted) {
      throw new RingletError('internal', 'a grammar thread did not start')
    }
    const outcome = await new Promise<CompileReply | { kind: 'lost' | 'late' }>((resolve) => {
      this.#onCompiled = resolve
      timer = setTimeout(() => resolve({ kind: 'late' }), limitMs)
      this.#post({ kind: 'compile', grammarId, ebnf, lengths })
    })
    clearTimeout(timer)
    this.#onCompiled = undefined
    if (outcome.kind === 'compiled') {
      this.compiling = undefined
      this.heapBytes = outcome.heapBytes
      this.grammars.set(key, { grammarId, leases: 0 })
      return { compileMs: outcome.compileMs }
    }
    await this.close()
    throw refusal(outcome, limitMs)
  }

  lease(key: string, now: number): CompiledEntry {
    const entry = this.grammars.get(key)
    if (entry === undefined) {
      throw new RangeError('the grammar is not compiled here')
    }
    this.grammars.delete(key)
    this.grammars.set(key, entry)
    entry.leases += 1
    this.leases += 1
    this.lastUsed = now
    return entry
  }

  release(entry: CompiledEntry): void {
    entry.leases -= 1
    this.leases -= 1
  }

  /** Gives up grammars that nobody uses, the longest unused first, until at most `most` are left. */
  forgetDownTo(most: number): void {
    for (const [key, entry] of this.grammars) {
      if (this.grammars.size <= most) {
        return
      }
      if (entry.leases === 0) {
        this.grammars.delete(key)
        this.#post({ kind: 'forget', grammarId: entry.grammarId })
      }
    }
  }

  async close(): Promise<void> {
    await this.#worker.terminate()
  }

  #post(request: MatcherRequest, transfer: readonly MessagePort[] = []): void {
    this.#worker.postMessage(request, transfer)
  }
}

function refusal(outcome: CompileAborted | { kind: 'lost' | 'late' }, limitMs: number): RingletError {
  switch (outcome.kind) {
    case 'aborted':
      return grammarInvalid(outcome.message)
    case 'late':
      return grammarInvalid(`the grammar took longer than ${limitMs} ms to compile; bounded repetitions cost most`)
    case 'lost':
      return grammarInvalid('the grammar is too large to compile')
  }
}
