/** What travels between the node's main thread and the engine's. Order is kept in each direction; nothing else is promised. */

import { type ErrorCode, RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { EngineInit, EngineSpec, LoadProgress } from './engine-client.ts'
import type { EngineStats, SequenceRequest } from './engine-types.ts'
import type { EmbedTask } from './sequence.ts'
import type { EngineOutput } from './sequence-table.ts'

export interface EngineThreadData {
  init: EngineInit
  /** One element: steps run so far, for the abort messages' `atStep`. Wraps around. */
  stepCounter: Int32Array<SharedArrayBuffer>
}

/**
 * `hold` comes before the first sequence of an adapter and `release` after its last one has ended, so that the engine has the
 * adapter whenever it has a sequence of it. Deadlines are on the clock of `threadClock`.
 */
export type ToEngine =
  | { kind: 'hold'; adapter: PackedAdapter }
  | { kind: 'release'; digest: string }
  | { kind: 'submit'; request: SequenceRequest }
  | { kind: 'embed'; task: EmbedTask; digest: string | undefined }
  | { kind: 'abort'; sequenceId: string; atStep: number }
  | ({ kind: 'call'; callId: number } & EngineCall)

export type EngineCall =
  | { call: 'preload' | 'pin'; adapter: PackedAdapter }
  | { call: 'unpin' | 'unload'; digest: string }
  | { call: 'stats' | 'drain' | 'close' }

export type FromEngine =
  | { kind: 'progress'; progress: LoadProgress }
  | { kind: 'ready'; spec: EngineSpec; stats: EngineStats }
  /** Loading failed; the thread ends. */
  | { kind: 'not_started'; error: WireError }
  /** The outputs of a step, and from time to time the state after it. */
  | { kind: 'outputs'; outputs: EngineOutput[]; stats: EngineStats | undefined }
  | { kind: 'reply'; callId: number; result: CallResult }
  /** The engine is broken; every sequence has had its last event. */
  | { kind: 'fatal'; message: string }

export type CallResult =
  | { kind: 'ok' }
  | { kind: 'preloaded'; resident: boolean }
  | { kind: 'stats'; stats: EngineStats }
  | { kind: 'error'; error: WireError }

/** Errors lose their class between threads. */
export interface WireError {
  code: ErrorCode
  message: string
  retryAfterSeconds: number | undefined
}

export function toWireError(error: unknown): WireError {
  if (error instanceof RingletError) {
    const { code, message, retryAfterSeconds } = error
    return { code, message, retryAfterSeconds }
  }
  const message = error instanceof Error ? error.message : String(error)
  return { code: 'engine_failed', message, retryAfterSeconds: undefined }
}

export function fromWireError({ code, message, retryAfterSeconds }: WireError): RingletError {
  return new RingletError(code, message, retryAfterSeconds === undefined ? {} : { retryAfterSeconds })
}

/** Milliseconds of the process's monotonic clock, the same in every thread. */
export function threadClock(): number {
  return Number(process.hrtime.bigint()) / 1e6
}
