/** What the node's routes share: the parts that main.ts built, and the limits of this node. */

import type { Logger } from 'pino'
import type { LoraxLimits } from '../../shared/api/lorax-request.ts'
import type { TicketKeys } from '../../shared/ticket.ts'
import type { AdapterStore } from '../adapters/adapter-store.ts'
import type { EngineClient } from '../engine/engine-client.ts'
import type { GrammarService } from '../grammar/grammar-service.ts'
import type { NodeMetrics } from '../metrics.ts'
import type { CallerTextEncoder } from '../text/caller-text-encoder.ts'
import type { ChatTemplate } from '../text/chat-template.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { ToolFormat } from '../tools/tool-format.ts'
import type { GenerationTracer } from './generation-trace.ts'

export interface NodeClock {
  /** Unix ms of the wall clock; tickets and replies. */
  wall(): number
  /** Unix ms that never jumps; durations and deadlines. The engine's clock. */
  steady(): number
}

export interface NodeIdentity {
  nodeId: string
  /** The name under which clients ask for the base model. */
  baseModel: string
  baseDigest: string
  dtype: string
  device: 'cpu' | 'cuda'
  version: string
}

export interface NodeLimits extends LoraxLimits {
  /** Bytes of a request body. */
  maxBodyBytes: number
  /** Scored tokens and their alternatives of a request's prompts, or of a whole reply; 500,000 are about 40 MB of JSON. */
  maxScores: number
  /** Bytes of the numbers of an embeddings reply: the edge holds it whole before it sends it. */
  maxEmbeddingBytes: number
  /** A request that has not ended by then fails with `deadline_exceeded`. */
  requestTimeoutMs: number
  /** A stream that waits longer than this for its adapter or its turn gets its headers and a heartbeat comment. */
  heartbeatMs: number
  /** A dropped stream can be resumed for so long. */
  resumeMs: number
}

export interface NodeContext {
  identity: NodeIdentity
  limits: NodeLimits
  engine: EngineClient
  adapters: AdapterStore
  grammars: GrammarService
  tokenizer: Tokenizer
  /** For texts of callers; the tokenizer's own `encode` holds up every stream while it works. */
  textEncoder: CallerTextEncoder
  chatTemplate: ChatTemplate | undefined
  /** How this model writes tool calls. */
  toolFormat: ToolFormat
  /** Token ids that end a sequence. */
  eosTokens: readonly number[]
  ticketKeys: TicketKeys
  clock: NodeClock
  metrics: NodeMetrics
  log: Logger
  /** Where traces are exported. */
  tracer?: GenerationTracer | undefined
  /** True from the first word of a drain. */
  draining(): boolean
  startDrain(): void
}
