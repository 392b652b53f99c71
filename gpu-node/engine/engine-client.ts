/**
 * The engine as the node's main thread sees it. `startEngine` (start-engine.ts) makes one over a worker thread.
 *
 * A sequence brings its adapter with it: `submit` takes the packed adapter, whose buffers are shared, and the engine holds it
 * until the sequence has ended. So no question arises of what the engine still has; it copies the adapter into a slot when
 * the sequence's turn comes and keeps it there, least recently used first out, as long as there is room.
 */

import type { Transferable } from 'node:worker_threads'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { EngineLimits } from './engine-limits.ts'
import type { EngineEvent, EngineStats, SequenceRequest } from './engine-types.ts'

/** A module that is imported inside the engine thread, and what it is given there; plain data and transferables only. */
export interface ThreadPart {
  /** `file:` URL, e.g. `new URL('./x.ts', import.meta.url).href`. */
  module: string
  options: unknown
  transfer?: Transferable[]
}

export interface EngineInit {
  /** Exports `createRunner(options, onProgress): Promise<ModelRunner>`. */
  runner: ThreadPart
  /** Exports `createMaskSource(options): MaskSource | Promise<MaskSource>`. Without it, sequences with a grammar are refused. */
  masks?: ThreadPart
  limits?: Partial<EngineLimits>
}

export interface LoadProgress {
  /** What is being done, for a progress bar: `read`, `quantise`, `compile` … */
  stage: string
  /** In [0, 1]. */
  fraction: number
}

export interface EngineSpec {
  maxRows: number
  /** Prompt and generated tokens together, most per sequence. */
  maxPositions: number
  vocabSize: number
  hiddenSize: number
  adapterSlots: number
}

export interface EmbedRequest {
  tokens: Int32Array
  tenantId: string
  adapter?: PackedAdapter
  /** Mean of the final hidden states over all tokens, or the last token's. Not normalised. */
  pooling: 'mean' | 'last'
  /** As in `SequenceRequest`. */
  deadline?: number
  signal?: AbortSignal
}

export interface EngineClient {
  readonly spec: EngineSpec
  /** False once the engine thread died; every submission then fails with `engine_failed`. */
  readonly healthy: boolean
  /** Settles when the engine thread has ended: with the reason when it died, with `undefined` after `close`. */
  readonly ended: Promise<Error | undefined>

  /**
   * Queues a sequence; `adapter.digest` must equal `request.adapterDigest`, both absent for the base model. Refusals come as
   * a `failed` event too, never as a throw. Returns `abort`: idempotent; `onEvent` still gets one last event (`aborted`, or
   * the end that came first). Events come in the order they happened; `onEvent` is never called inside `submit`.
   */
  submit(
    request: SequenceRequest,
    adapter: PackedAdapter | undefined,
    onEvent: (event: EngineEvent) => void,
  ): () => void

  /** Hidden states of the text, pooled: `[hiddenSize]`. Rejects with a RingletError. */
  embed(request: EmbedRequest): Promise<Float32Array>

  /** Puts an adapter in a slot ahead of its first sequence, if one is free or holds an idle adapter. True: it is there. */
  preloadAdapter(adapter: PackedAdapter): Promise<boolean>
  /** Keeps an adapter in its slot until unpinned. At least one slot stays unpinned; else `adapter_capacity`. */
  pinAdapter(adapter: PackedAdapter): Promise<void>
  unpinAdapter(digest: string): Promise<void>
  /**
   * Frees the adapter's slot, its pin and its saved prefixes once no sequence that was submitted before uses it; resolves
   * then. Later submissions with the same digest bring it back.
   */
  unloadAdapter(digest: string): Promise<void>

  /** Did the engine hold this adapter in a slot when it last reported? For replies and routing, not for decisions. */
  isResident(digest: string): boolean
  /** Sequences submitted and not ended, exact at any time. */
  inFlight(): number
  /** The last snapshot, at most about 100 ms old while the engine is busy. */
  stats(): EngineStats
  freshStats(): Promise<EngineStats>

  /** From now on `submit` is refused with `node_draining`; resolves when every earlier sequence has ended. */
  drain(): Promise<void>
  /** Fails what is left with `node_draining`, ends the thread and frees the model. */
  close(): Promise<void>
}
