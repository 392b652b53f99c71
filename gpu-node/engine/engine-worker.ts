/**
 * The engine's thread: makes the runner, then steps while there is work and sleeps when there is none. Between two steps it
 * goes through its event loop once, so that messages (submissions, aborts) and masks arrive before the next step.
 */

import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import { Engine, type StepOutcome } from './engine.ts'
import type { LoadProgress, ThreadPart } from './engine-client.ts'
import {
  type CallResult,
  type EngineThreadData,
  type FromEngine,
  type ToEngine,
  threadClock,
  toWireError,
} from './engine-messages.ts'
import type { ModelRunner } from './engine-types.ts'
import type { MaskSource } from './mask-source.ts'
import { type EngineOutput, failedEvent } from './sequence-table.ts'

const STATS_INTERVAL_MS = 100

interface RunnerModule {
  createRunner(options: unknown, onProgress: (progress: LoadProgress) => void): Promise<ModelRunner>
}

interface MaskModule {
  createMaskSource(options: unknown): MaskSource | Promise<MaskSource>
}

class EngineThread {
  readonly #port: MessagePort
  readonly #stepCounter: Int32Array<SharedArrayBuffer>
  readonly #runner: ModelRunner
  readonly #engine: Engine
  readonly #held = new Map<string, PackedAdapter>()
  readonly #drains: number[] = []
  #outbox: EngineOutput[] = []
  #statsSentAt = 0
  /** Set while a step is due; undefined while the thread sleeps. */
  #nextStep: NodeJS.Immediate | undefined
  #deadlineTimer: NodeJS.Timeout | undefined
  #broken = false

  constructor(port: MessagePort, data: EngineThreadData, runner: ModelRunner, masks: MaskSource | undefined) {
    this.#port = port
    this.#stepCounter = data.stepCounter
    this.#runner = runner
    this.#engine = new Engine({
      runner,
      now: threadClock,
      emit: (output) => this.#outbox.push(output),
      ...(data.init.limits === undefined ? {} : { limits: data.init.limits }),
      ...(masks === undefined ? {} : { masks }),
    })
    masks?.onReady(() => this.#wake())
    const { maxRows, maxPositions, vocabSize, hiddenSize, adapterSlots } = runner
    this.#post({
      kind: 'ready',
      spec: { maxRows, maxPositions, vocabSize, hiddenSize, adapterSlots },
      stats: this.#engine.stats(),
    })
    port.on('message', (message: ToEngine) => this.#receive(message))
  }

  #receive(message: ToEngine): void {
    switch (message.kind) {
      case 'hold':
        this.#held.set(message.adapter.digest, message.adapter)
        break
      case 'release':
        this.#held.delete(message.digest)
        break
      case 'submit': {
        const { adapterDigest } = message.request
        this.#engine.submit(message.request, this.#heldAdapter(adapterDigest))
        break
      }
      case 'embed': {
        const adapter = this.#heldAdapter(message.digest)
        if (adapter?.digest === message.digest) {
          this.#engine.submitEmbedding(message.task, adapter)
        } else {
          const error = new RingletError('internal', `adapter ${message.digest} was asked for and is not here`)
          this.#outbox.push(failedEvent(message.task.sequenceId, error))
        }
        break
      }
      case 'abort': {
        const { stepCount } = this.#engine
        this.#engine.abort(message.sequenceId, stepCount - ((stepCount - message.atStep) | 0))
        break
      }
      case 'call':
        this.#answer(message)
    }
    this.#wake()
  }

  #heldAdapter(digest: string | undefined): PackedAdapter | undefined {
    return digest === undefined ? undefined : this.#held.get(digest)
  }

  #answer(message: Extract<ToEngine, { kind: 'call' }>): void {
    try {
      const result = this.#call(message)
      if (result !== undefined) {
        this.#post({ kind: 'reply', callId: message.callId, result })
      }
    } catch (error) {
      this.#post({ kind: 'reply', callId: message.callId, result: { kind: 'error', error: toWireError(error) } })
    }
  }

  /** `undefined`: the answer comes later. */
  #call(message: Extract<ToEngine, { kind: 'call' }>): CallResult | undefined {
    switch (message.call) {
      case 'preload':
        return { kind: 'preloaded', resident: this.#engine.preloadAdapter(message.adapter) }
      case 'pin':
        this.#engine.pinAdapter(message.adapter)
        return { kind: 'ok' }
      case 'unpin':
        this.#engine.unpinAdapter(message.digest)
        return { kind: 'ok' }
      case 'unload':
        this.#engine.unpinAdapter(message.digest)
        this.#engine.unloadAdapter(message.digest, () => {
          this.#post({ kind: 'reply', callId: message.callId, result: { kind: 'ok' } })
        })
        return undefined
      case 'stats':
        return { kind: 'stats', stats: this.#engine.stats() }
      case 'drain':
        this.#engine.drain()
        this.#drains.push(message.callId)
        return undefined
      case 'close':
        this.#close(message.callId)
        return undefined
    }
  }

  #wake(): void {
    if (this.#nextStep === undefined && !this.#broken) {
      clearTimeout(this.#deadlineTimer)
      this.#nextStep = setImmediate(() => this.#step())
    }
  }

  #step(): void {
    this.#nextStep = undefined
    const outcome = this.#engine.step()
    Atomics.store(this.#stepCounter, 0, this.#engine.stepCount | 0)
    this.#goOnAfter(outcome)
    this.#flush(this.#nextStep === undefined)
    if (this.#engine.sequenceCount === 0) {
      for (const callId of this.#drains.splice(0)) {
        this.#post({ kind: 'reply', callId, result: { kind: 'ok' } })
      }
    }
  }

  #goOnAfter(outcome: StepOutcome): void {
    switch (outcome.kind) {
      case 'ran':
      case 'retry':
      case 'unserviceable':
        this.#wake()
        break
      case 'deferred': {
        const wait = this.#engine.nextDeadline - threadClock()
        if (Number.isFinite(wait)) {
          this.#deadlineTimer = setTimeout(() => this.#wake(), Math.max(1, wait))
        }
        break
      }
      case 'fatal':
        this.#broken = true
        this.#flush(true)
        this.#post({ kind: 'fatal', message: toWireError(outcome.error).message })
        break
      case 'idle':
    }
  }

  #flush(withStats: boolean): void {
    const now = threadClock()
    const due = withStats || now - this.#statsSentAt >= STATS_INTERVAL_MS
    if (this.#outbox.length === 0 && !due) {
      return
    }
    const outputs = this.#outbox
    this.#outbox = []
    this.#post({ kind: 'outputs', outputs, stats: due ? this.#engine.stats() : undefined })
    if (due) {
      this.#statsSentAt = now
    }
  }

  #close(callId: number): void {
    this.#broken = true
    clearImmediate(this.#nextStep)
    clearTimeout(this.#deadlineTimer)
    this.#engine.failAll(new RingletError('node_draining', 'the node is closing'))
    this.#flush(true)
    this.#runner.dispose()
    this.#post({ kind: 'reply', callId, result: { kind: 'ok' } })
    this.#port.close()
  }

  #post(message: FromEngine): void {
    this.#port.postMessage(message)
  }
}

async function start(port: MessagePort, data: EngineThreadData): Promise<void> {
  try {
    const runner = await makeRunner(data.init.runner, (progress) => port.postMessage({ kind: 'progress', progress }))
    const masks = data.init.masks === undefined ? undefined : await makeMasks(data.init.masks)
    new EngineThread(port, data, runner, masks)
  } catch (error) {
    const message: FromEngine = { kind: 'not_started', error: toWireError(error) }
    port.postMessage(message)
    port.close()
  }
}

async function makeRunner(part: ThreadPart, onProgress: (progress: LoadProgress) => void): Promise<ModelRunner> {
  const module: RunnerModule = await import(part.module)
  return module.createRunner(part.options, onProgress)
}

async function makeMasks(part: ThreadPart): Promise<MaskSource> {
  const module: MaskModule = await import(part.module)
  return module.createMaskSource(part.options)
}

if (parentPort === null) {
  throw new Error('this file is the entry of a worker thread')
}
await start(parentPort, workerData)
