/** A generating request and its generation, as routes, replies and logs see them. */

import type { ApiStyle, GenerateRequest } from '../../shared/api/generate-request.ts'
import type { AdapterTier } from '../../shared/fleet.ts'
import type { Delivered, Ticket } from '../../shared/ticket.ts'
import type { AdapterTokens, LoadProgress } from '../adapters/adapter-store.ts'
import type { TokenAlternative } from '../engine/engine-types.ts'
import type { ToolParser } from '../tools/tool-parser.ts'
import type { Choice, ChoiceEvent } from './choice.ts'
import type { PreparedPrompt, PromptField } from './prepare-prompt.ts'

export interface GenerationInput {
  ticket: Ticket
  /** Of the route: refusals name fields as its bodies do. */
  api: ApiStyle
  request: GenerateRequest
  promptField: PromptField
  adapterTokens: AdapterTokens
  delivered: Delivered
  /** Of the caller's trace, as the edge hands it on. */
  traceparent?: string | undefined
  /** The client left. */
  signal: AbortSignal
  onProgress?: (progress: GenerationProgress) => void
}

export type GenerationProgress = LoadProgress | { phase: 'queued'; waiting: number }

/** One entry a token; the first has no logprob (NaN) and no alternatives. */
export interface PromptScores {
  logprobs: Float32Array
  alternatives?: (TokenAlternative[] | undefined)[]
}

export interface ServedAdapter {
  digest: string
  cacheTier: AdapterTier
}

/** Milliseconds; what has not happened yet is absent. */
export interface GenerationTimings {
  /** Unix ms on the steady clock. */
  arrivedAt: number
  preparedAt: number
  loadMs?: number
  queuedMs?: number
  prefillMs?: number
  firstTokenAt?: number
  endedAt?: number
}

export interface Generation {
  /** `undefined`: the base model. */
  adapter: ServedAdapter | undefined
  prompts: PreparedPrompt[]
  /** `request.bestOf` for each prompt, in order. */
  choices: Choice[]
  /** Of each choice. */
  seeds: number[]
  /** Of each prompt that asked for them. */
  promptScores: (PromptScores | undefined)[]
  timings: GenerationTimings
  /** Ends when all choices have; throws when one failed or the client left. To be read once. */
  events: AsyncIterable<ChoiceEvent[]>
  /** Schema keywords, by path, that are left to the model; told with the ignored fields. */
  notEnforced: readonly string[]
  /** For each choice its own; undefined: the request offers no tools. */
  createToolParser: (() => ToolParser) | undefined
  /** Ends what still runs; `events` throws then. */
  abort(): void
}
