/** A request once the engine holds it: its tokens, how far they are in the KV cache, and where it stands. */

import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { SequenceFinish, SequenceRequest, TokenAlternative } from './engine-types.ts'
import type { GuessTally } from './prompt-lookup.ts'
import { TokenHistory } from './sampling/score-changes.ts'

/**
 * waiting: queued · prefilling: owns a KV row behind the running ones · running: one token a step · ended: has had its last
 * event. A running sequence may be preempted back to waiting.
 */
export type SequenceStatus = 'waiting' | 'prefilling' | 'running' | 'ended'

/** Pools the hidden states of a text; nothing is generated. */
export interface EmbedTask {
  sequenceId: string
  tenantId: string
  tokens: Int32Array
  pooling: 'mean' | 'last'
  deadline?: number
}

export interface GenerateWork {
  kind: 'generate'
  request: SequenceRequest
  history: TokenHistory
  /** Made when it first runs alone. */
  guesses?: GuessTally
  /** Filled as the prompt runs, when asked for; `[promptLength]`, the first NaN. */
  promptLogprobs?: Float32Array
  /** Beside them, when alternatives are asked for; the first undefined. */
  promptAlternatives?: (TokenAlternative[] | undefined)[]
}

export interface EmbedWork {
  kind: 'embed'
  pooling: 'mean' | 'last'
  /** Running sum, or the last token's states; `[hiddenSize]`. */
  pooled: Float64Array
}

/**
 * Positions of a sequence, with who owns what:
 *
 *     0 ……… filled ……… prefillEnd ……… length ……… tokens.length
 *     | in the KV row  | still to run   |          |
 *     | prompt, then delivered and generated tokens | room for more |
 *
 * While it runs, filled = length − 1: the newest token is the next step's input. While it waits for a grammar's mask,
 * filled = length and `heldLogits` are those that its next token will be drawn from.
 */
export class Sequence {
  readonly id: string
  readonly tenantId: string
  readonly adapter: PackedAdapter | undefined
  /** Sequences with the same scope may share KV prefixes: adapter digest, the runner's kind of KV, the tenant's salt. */
  readonly prefixScope: string
  readonly work: GenerateWork | EmbedWork
  readonly submittedAt: number
  readonly deadline: number
  readonly promptLength: number
  readonly tokens: Int32Array
  length: number
  filled = 0
  prefillEnd = 0
  status: SequenceStatus = 'waiting'
  kvRow: number | undefined
  adapterSlot: number | undefined
  releaseAdapter: (() => void) | undefined
  heldLogits: Float32Array | undefined
  /** When it first got a KV row. */
  startedAt: number | undefined
  /** When it last got one. */
  admittedAt = 0
  /** Since when it is passed over because its adapter finds no slot. */
  withoutSlotSince: number | undefined
  /** Runs of this sequence alone that the runner failed in a row. */
  failures = 0

  constructor(init: SequenceInit) {
    this.id = init.id
    this.tenantId = init.tenantId
    this.adapter = init.adapter
    this.prefixScope = `${init.adapter?.digest ?? ''}\0${init.kvKind ?? ''}\0${init.cacheSalt}`
    this.work = init.work
    this.submittedAt = init.submittedAt
    this.deadline = init.deadline ?? Number.POSITIVE_INFINITY
    this.promptLength = init.prompt.length
    this.tokens = new Int32Array(init.capacity)
    this.tokens.set(init.prompt)
    this.tokens.set(init.delivered, init.prompt.length)
    this.length = init.prompt.length + init.delivered.length
  }

  /** Tokens after the prompt, delivered ones included. */
  get generated(): number {
    return this.length - this.promptLength
  }

  get remainingPrefill(): number {
    return this.prefillEnd - this.filled
  }

  append(token: number): void {
    this.tokens[this.length++] = token
  }
}

interface SequenceInit {
  id: string
  tenantId: string
  adapter: PackedAdapter | undefined
  cacheSalt: string
  kvKind: string | undefined
  prompt: Int32Array
  delivered: Int32Array
  /** Most tokens it can have. */
  capacity: number
  work: GenerateWork | EmbedWork
  submittedAt: number
  deadline: number | undefined
}

export function generateSequence(
  request: SequenceRequest,
  adapter: PackedAdapter | undefined,
  { maxPositions, kvKind }: { maxPositions: number; kvKind: string | undefined },
  now: number,
): Sequence {
  const work: GenerateWork = {
    kind: 'generate',
    request,
    history: new TokenHistory(request.sampling, request.promptTokens, request.deliveredTokens),
  }
  if (request.promptLogprobs) {
    work.promptLogprobs = new Float32Array(request.promptTokens.length).fill(Number.NaN)
    if (request.sampling.alternatives > 0) {
      work.promptAlternatives = Array.from(request.promptTokens, () => undefined)
    }
  }
  const delivered = request.deliveredTokens
  const most = request.promptTokens.length + Math.max(request.maxNewTokens, delivered.length)
  return new Sequence({
    id: request.sequenceId,
    tenantId: request.tenantId,
    adapter,
    cacheSalt: request.cacheSalt,
    kvKind,
    prompt: request.promptTokens,
    delivered,
    capacity: Math.min(most, Math.max(maxPositions, request.promptTokens.length + delivered.length)),
    work,
    submittedAt: now,
    deadline: request.deadline,
  })
}

export function embedSequence(
  task: EmbedTask,
  adapter: PackedAdapter | undefined,
  hiddenSize: number,
  now: number,
): Sequence {
  return new Sequence({
    id: task.sequenceId,
    tenantId: task.tenantId,
    adapter,
    cacheSalt: '',
    kvKind: undefined,
    prompt: task.tokens,
    delivered: new Int32Array(0),
    capacity: task.tokens.length,
    work: { kind: 'embed', pooling: task.pooling, pooled: new Float64Array(hiddenSize) },
    submittedAt: now,
    deadline: task.deadline,
  })
}

/** Not computed yet, though asked for. */
export function wantsPromptLogprobs({ work }: Sequence): boolean {
  return work.kind === 'generate' && work.promptLogprobs !== undefined
}

/** Why nothing may be drawn any more: a continued sequence can be at its end before it begins. */
export function endReached({ work, length, promptLength }: Sequence, maxPositions: number): SequenceFinish | undefined {
  if (work.kind === 'embed') {
    return undefined
  }
  const { deliveredTokens, eosTokens, ignoreEos, maxNewTokens } = work.request
  const last = deliveredTokens.at(-1)
  if (last !== undefined && !ignoreEos && eosTokens.includes(last)) {
    return 'eos'
  }
  return length - promptLength >= maxNewTokens || length >= maxPositions ? 'length' : undefined
}
