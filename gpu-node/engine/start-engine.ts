/** Starts the engine in a worker thread, and is its handle on the main thread. */

import { randomUUID } from 'node:crypto'
import type { Worker } from 'node:worker_threads'
import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import { startWorkerThread } from '../worker-thread.ts'
import type { EmbedRequest, EngineClient, EngineInit, EngineSpec, LoadProgress } from './engine-client.ts'
import {
  type CallResult,
  type EngineCall,
  type EngineThreadData,
  type FromEngine,
  fromWireError,
  type ToEngine,
  threadClock,
} from './engine-messages.ts'
import type { EngineEvent, EngineStats, SequenceRequest } from './engine-types.ts'
import { type EngineOutput, failedEvent } from './sequence-table.ts'

export interface StartOptions {
  onProgress?: (progress: LoadProgress) => void
}

/** Resolves when the model is loaded; rejects with a RingletError when it cannot be. */
export function startEngine(init: EngineInit, { onProgress }: StartOptions = {}): Promise<EngineClient> {
  const stepCounter = new Int32Array(new SharedArrayBuffer(4))
  const data: EngineThreadData = { init: withoutTransfer(init), stepCounter }
  const worker = startWorkerThread(new URL('./engine-worker.ts', import.meta.url), {
    workerData: data,
    transferList: [...(init.runner.transfer ?? []), ...(init.masks?.transfer ?? [])],
  })
  return new Promise((resolve, reject) => {
    const died = (error: unknown) => {
      reject(new RingletError('engine_failed', 'the engine thread ended while it was loading', { cause: error }))
    }
    const whileLoading = (message: FromEngine) => {
      switch (message.kind) {
        case 'progress':
          onProgress?.(message.progress)
          break
        case 'ready':
          worker.off('message', whileLoading).off('error', died).off('exit', died)
          resolve(new WorkerEngine(worker, message.spec, message.stats, stepCounter))
          break
        case 'not_started':
          reject(fromWireError(message.error))
          break
        default:
          died(new Error(`unexpected ${message.kind}`))
      }
    }
    worker.on('message', whileLoading).once('error', died).once('exit', died)
  })
}

/** Ports and the like are moved, not copied: they travel in the transfer list. */
function withoutTransfer(init: EngineInit): EngineInit {
  const { runner, masks } = init
  return {
    ...init,
    runner: { module: runner.module, options: runner.options },
    ...(masks === undefined ? {} : { masks: { module: masks.module, options: masks.options } }),
  }
}

interface InFlight {
  digest: string | undefined
  onOutput: (output: EngineOutput) => void
}

class WorkerEngine implements EngineClient {
  readonly spec: EngineSpec
  readonly ended: Promise<Error | undefined>
  readonly #worker: Worker
  readonly #stepCounter: Int32Array<SharedArrayBuffer>
  readonly #inFlight = new Map<string, InFlight>()
  /** Sequences in flight by adapter. */
  readonly #users = new Map<string, number>()
  readonly #calls = new Map<number, { resolve: (result: CallResult) => void; reject: (error: Error) => void }>()
  readonly #settleEnded: (reason: Error | undefined) => void
  #stats: EngineStats
  #resident: ReadonlySet<string>
  #nextCallId = 0
  #state: 'running' | 'closing' | 'dead' = 'running'

  constructor(worker: Worker, spec: EngineSpec, stats: EngineStats, stepCounter: Int32Array<SharedArrayBuffer>) {
    this.spec = spec
    this.#worker = worker
    this.#stats = stats
    this.#resident = residentDigests(stats)
    this.#stepCounter = stepCounter
    const { promise, resolve } = withResolver<Error | undefined>()
    this.ended = promise
    this.#settleEnded = resolve
    worker.on('message', (message: FromEngine) => this.#receive(message))
    worker.on('error', (error: Error) => this.#die(error))
    worker.on('exit', (code) => this.#die(new Error(`the engine thread ended with code ${code}`)))
  }

  get healthy(): boolean {
    return this.#state !== 'dead'
  }

  submit(
    request: SequenceRequest,
    adapter: PackedAdapter | undefined,
    onEvent: (event: EngineEvent) => void,
  ): () => void {
    const { sequenceId } = request
    const onOutput = (output: EngineOutput) => {
      if (output.kind !== 'embedding') {
        onEvent(output)
      }
    }
    this.#begin(sequenceId, adapter, onOutput, () => {
      this.#post({ kind: 'submit', request: { ...request, ...toThreadDeadline(request.deadline) } })
    })
    return () => this.#abort(sequenceId)
  }

  embed({ tokens, tenantId, adapter, pooling, deadline, signal }: EmbedRequest): Promise<Float32Array> {
    const sequenceId = `embed-${randomUUID()}`
    return new Promise((resolve, reject) => {
      const abort = () => this.#abort(sequenceId)
      const settle = (act: () => void) => {
        signal?.removeEventListener('abort', abort)
        act()
      }
      const onOutput = (output: EngineOutput) => {
        switch (output.kind) {
          case 'embedding':
            settle(() => resolve(output.embedding))
            break
          case 'failed':
            settle(() => reject(new RingletError(output.code, output.message, retryAfter(output))))
            break
          case 'aborted':
            settle(() => reject(signal?.reason))
            break
          default:
        }
      }
      this.#begin(sequenceId, adapter, onOutput, () => {
        const task = { sequenceId, tenantId, tokens, pooling, ...toThreadDeadline(deadline) }
        this.#post({ kind: 'embed', task, digest: adapter?.digest })
      })
      signal?.addEventListener('abort', abort, { once: true })
      if (signal?.aborted === true) {
        abort()
      }
    })
  }

  async preloadAdapter(adapter: PackedAdapter): Promise<boolean> {
    const result = await this.#call({ call: 'preload', adapter })
    return result.kind === 'preloaded' && result.resident
  }

  async pinAdapter(adapter: PackedAdapter): Promise<void> {
    await this.#call({ call: 'pin', adapter })
  }

  async unpinAdapter(digest: string): Promise<void> {
    await this.#call({ call: 'unpin', digest })
  }

  async unloadAdapter(digest: string): Promise<void> {
    await this.#call({ call: 'unload', digest })
  }

  isResident(digest: string): boolean {
    return this.#resident.has(digest)
  }

  inFlight(): number {
    return this.#inFlight.size
  }

  stats(): EngineStats {
    return this.#stats
  }

  async freshStats(): Promise<EngineStats> {
    const result = await this.#call({ call: 'stats' })
    if (result.kind === 'stats') {
      this.#keepStats(result.stats)
    }
    return this.#stats
  }

  async drain(): Promise<void> {
    await this.#call({ call: 'drain' })
  }

  async close(): Promise<void> {
    if (this.#state === 'running') {
      this.#state = 'closing'
      // When the thread dies instead, it has ended all the same.
      await this.#call({ call: 'close' }).catch(() => undefined)
      await this.#worker.terminate()
    }
    await this.ended
  }

  #begin(
    sequenceId: string,
    adapter: PackedAdapter | undefined,
    onOutput: (output: EngineOutput) => void,
    post: () => void,
  ): void {
    if (this.#inFlight.has(sequenceId)) {
      throw new Error(`sequence id ${sequenceId} is in use`)
    }
    if (this.#state !== 'running') {
      const closing = this.#state === 'closing'
      const error = closing ? closingError() : deadError()
      queueMicrotask(() => onOutput(failedEvent(sequenceId, error)))
      return
    }
    this.#inFlight.set(sequenceId, { digest: adapter?.digest, onOutput })
    if (adapter !== undefined) {
      const users = this.#users.get(adapter.digest) ?? 0
      this.#users.set(adapter.digest, users + 1)
      if (users === 0) {
        this.#post({ kind: 'hold', adapter })
      }
    }
    post()
  }

  #abort(sequenceId: string): void {
    if (this.#inFlight.has(sequenceId) && this.#state === 'running') {
      this.#post({ kind: 'abort', sequenceId, atStep: Atomics.load(this.#stepCounter, 0) })
    }
  }

  #receive(message: FromEngine): void {
    switch (message.kind) {
      case 'outputs':
        if (message.stats !== undefined) {
          this.#keepStats(message.stats)
        }
        for (const output of message.outputs) {
          this.#deliver(output)
        }
        break
      case 'reply': {
        const call = this.#calls.get(message.callId)
        this.#calls.delete(message.callId)
        call?.resolve(message.result)
        break
      }
      case 'fatal':
        this.#die(new Error(message.message))
        break
      default:
        this.#die(new Error(`unexpected message ${message.kind}`))
    }
  }

  #deliver(output: EngineOutput): void {
    const sequence = this.#inFlight.get(output.sequenceId)
    if (sequence === undefined) {
      return
    }
    if (output.kind === 'finished' || output.kind === 'failed' || output.kind === 'aborted') {
      this.#inFlight.delete(output.sequenceId)
      this.#dropUser(sequence.digest)
    }
    sequence.onOutput(output)
  }

  #dropUser(digest: string | undefined): void {
    if (digest === undefined) {
      return
    }
    const users = (this.#users.get(digest) ?? 0) - 1
    if (users > 0) {
      this.#users.set(digest, users)
    } else {
      this.#users.delete(digest)
      this.#post({ kind: 'release', digest })
    }
  }

  async #call(call: EngineCall): Promise<CallResult> {
    if (this.#state === 'dead') {
      throw deadError()
    }
    const callId = this.#nextCallId++
    const result = await new Promise<CallResult>((resolve, reject) => {
      this.#calls.set(callId, { resolve, reject })
      this.#post({ kind: 'call', callId, ...call })
    })
    if (result.kind === 'error') {
      throw fromWireError(result.error)
    }
    return result
  }

  /** The thread is gone or broken: whatever was asked of it gets its answer now. */
  #die(reason: Error): void {
    if (this.#state === 'dead') {
      return
    }
    const closed = this.#state === 'closing'
    this.#state = 'dead'
    for (const [sequenceId, { onOutput }] of this.#inFlight) {
      onOutput(failedEvent(sequenceId, closed ? closingError() : deadError()))
    }
    this.#inFlight.clear()
    this.#users.clear()
    for (const { reject } of this.#calls.values()) {
      reject(deadError())
    }
    this.#calls.clear()
    this.#settleEnded(closed ? undefined : reason)
    void this.#worker.terminate()
  }

  #keepStats(stats: EngineStats): void {
    this.#stats = stats
    this.#resident = residentDigests(stats)
  }

  #post(message: ToEngine): void {
    this.#worker.postMessage(message)
  }
}

/** From the caller's clock (Unix time) to the one that both threads share. */
function toThreadDeadline(deadline: number | undefined): { deadline?: number } {
  const now = performance.timeOrigin + performance.now()
  return deadline === undefined ? {} : { deadline: threadClock() + deadline - now }
}

function residentDigests(stats: EngineStats): ReadonlySet<string> {
  return new Set(stats.residentAdapters.map(({ digest }) => digest))
}

function retryAfter({ retryAfterSeconds }: { retryAfterSeconds?: number }): { retryAfterSeconds?: number } {
  return retryAfterSeconds === undefined ? {} : { retryAfterSeconds }
}

const deadError = () => new RingletError('engine_failed', 'the engine has failed')
const closingError = () => new RingletError('node_draining', 'the node is closing')

function withResolver<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => undefined
  const promise = new Promise<T>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
