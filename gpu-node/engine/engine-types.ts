/**
 * The words between the HTTP side of a node and its engine, and between the engine and the model runner.
 * Token ids and digests only: nothing here knows text, HTTP, or where adapters come from.
 */

import type { ErrorCode } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'

/** Sampling as a sequence needs it; absent or neutral values mean "off". Semantics: docs/sampling.md. */
export interface SamplingParams {
  /** 0 is greedy. Only meaningful when `doSample`. */
  temperature: number
  doSample: boolean
  topK?: number
  topP?: number
  minP?: number
  typicalP?: number
  /** > 0; 1 is off (CTRL paper, as transformers applies it: over prompt and generated tokens). */
  repetitionPenalty?: number
  /** OpenAI's definition: counts of generated tokens only. */
  frequencyPenalty?: number
  presencePenalty?: number
  /** Token id to additive bias. */
  logitBias?: readonly (readonly [number, number])[]
  /** Below 2^53. Draw n of a sequence depends on (seed, n) alone, so batch mates and continuations change nothing. */
  seed: number
  watermark?: boolean
  /** How many alternatives with their log-probabilities each token carries; 0: none, the chosen token's own only. */
  alternatives: number
}

/** What one sequence asks of the engine. */
export interface SequenceRequest {
  sequenceId: string
  tenantId: string
  /** Prefix reuse happens only between sequences with the same salt and adapter digest. */
  cacheSalt: string
  promptTokens: Int32Array
  /** Already generated and delivered elsewhere: the sequence goes on after them, and they are not emitted again. */
  deliveredTokens: Int32Array
  /** `undefined`: the base model. The adapter must have been given to the engine before. */
  adapterDigest?: string
  sampling: SamplingParams
  /** Counted over delivered and new tokens together. */
  maxNewTokens: number
  /** Any of these ends the sequence, unless `ignoreEos`. */
  eosTokens: readonly number[]
  ignoreEos: boolean
  promptLogprobs: boolean
  /** Structured output: which grammar masks this sequence's logits; compiled before it is submitted. */
  grammarId?: string
  /** Unix ms (monotonic clock of the process: `performance.timeOrigin + performance.now()`); the sequence fails after it. */
  deadline?: number
}

export interface TokenAlternative {
  tokenId: number
  logprob: number
}

export interface GeneratedToken {
  tokenId: number
  /** Natural log of the model's probability (temperature 1, no truncation); NaN where the grammar forbids every comparison. */
  logprob: number
  alternatives?: TokenAlternative[]
}

export type SequenceFinish = 'eos' | 'length' | 'grammar_end'

/** Each sequence ends with exactly one `finished`, `failed` or `aborted`. */
export type EngineEvent =
  | { kind: 'started'; sequenceId: string; queuedMs: number; cachedTokens: number }
  /** `[promptLength]`; `alternatives` of each but the first, when `sampling.alternatives` asks for some. */
  | {
      kind: 'prompt_logprobs'
      sequenceId: string
      logprobs: Float32Array
      alternatives?: (TokenAlternative[] | undefined)[]
    }
  | { kind: 'token'; sequenceId: string; token: GeneratedToken; prefillMs?: number }
  | { kind: 'finished'; sequenceId: string; reason: SequenceFinish }
  | { kind: 'failed'; sequenceId: string; code: ErrorCode; message: string; retryAfterSeconds?: number }
  | { kind: 'aborted'; sequenceId: string }

/** What the node reports and meters. Counts since start unless named otherwise. */
export interface EngineStats {
  waiting: number
  running: number
  freeRows: number
  maxRows: number
  steps: number
  prefillTokens: number
  decodeTokens: number
  prefixHitTokens: number
  /** Steps between the abort of a running sequence and its row being free, the largest seen. */
  maxAbortSteps: number
  residentAdapters: { digest: string; bytes: number; leases: number; pinned: boolean }[]
  /** Running sequences that gave up their row to a tenant below its share; they go on later. */
  preemptions: number
  prefixBytes: number
  /** Tokens guessed ahead for a sequence that ran alone, and those of them that came true. */
  guessedTokens: number
  rightGuesses: number
  /** Violations found by the idle-time invariant check; a healthy engine has none. */
  invariantViolations: string[]
}

/** One device's model: runs prefill and decode for rows of the KV cache. Implementations: ORT (real), arithmetic (tests). */
export interface ModelRunner {
  readonly maxRows: number
  readonly maxPositions: number
  readonly vocabSize: number
  readonly hiddenSize: number
  /** Adapters that fit in the engine at once. */
  readonly adapterSlots: number

  /**
   * Runs `tokens` of one sequence at positions `startPosition …` in KV row `kvRow`, whose earlier positions are filled.
   * Returns logits `[n, vocabSize]`: n = 0 (`none`), 1 (`last`) or tokens.length (`all`); valid until the next run, which is
   * a prefill, a decode or hidden states.
   */
  prefill(chunk: PrefillChunk): Float32Array

  /** One token a row: rows 0 … n-1 of the KV cache. Returns logits `[n, vocabSize]`, valid until the next run. */
  decode(batch: DecodeBatch): Float32Array

  /** Absent: rows that decode and prompts always run apart. */
  readonly mixed?: MixedRuns

  /** Logits that stay on the device that computed them, of runs that ask for it with `keep`; absent: every run returns them. */
  readonly kept?: KeptLogits

  /** Final hidden states (after the last norm) `[tokens.length, hiddenSize]` for embeddings. */
  hiddenStates(chunk: Omit<PrefillChunk, 'logits'>): Float32Array

  /** Sequences may share KV (prefix reuse) only where this is equal. Absent: any two may. */
  kvKind?(promptPositions: number): string

  /** Copies `positions` positions of KV row `from` over row `to`. */
  copyRow(from: number, to: number, positions: number): void
  /** Copies positions `[range.start, range.end)` of a row out, in a layout of the runner's own; for prefix reuse. */
  saveKv(range: KvRange): KvSnapshot
  /** Copies positions `[snapshot.start, end)` of a snapshot into a row, at the same positions; `end` ≤ `snapshot.end`. */
  restoreKv(kvRow: number, snapshot: KvSnapshot, end: number): void

  loadAdapter(adapterSlot: number, adapter: PackedAdapter): void
  unloadAdapter(adapterSlot: number): void
  dispose(): void
}

export interface PrefillChunk {
  kvRow: number
  tokens: Int32Array
  startPosition: number
  /** `undefined`: the base model. */
  adapterSlot: number | undefined
  logits: 'none' | 'last' | 'all'
  /** Leaves the logits to `ModelRunner.kept` (at most its `maxRows`) and returns none. */
  keep?: boolean
  /**
   * Positions of the whole prompt, of which this may be a part; absent: the chunk ends the prompt. Models with rotary tables
   * by sequence length (longrope) choose by it; `ModelRunner.kvKind` says which sequences may share KV.
   */
  promptPositions?: number
}

export interface DecodeBatch {
  /** One token a row. */
  tokens: Int32Array
  /** Position of that token in its row: the number of positions already filled. */
  positions: Int32Array
  adapterSlots: readonly (number | undefined)[]
  /** Leaves the logits to `ModelRunner.kept` and returns none. */
  keep?: boolean
}

/** Runs in which some rows decode and others prefill: the weights are read once for all of them. */
export interface MixedRuns {
  /** Whether sequences with these adapters may share such a run. */
  takes(adapterSlots: readonly (number | undefined)[]): boolean
  /** Returns logits `[n, vocabSize]`: of the decoding rows, then of each chunk that wants its last; valid until the next run. */
  run(batch: MixedBatch): Float32Array
}

export interface MixedBatch {
  /** May have no rows. */
  decode: DecodeBatch
  /** Of rows that don't decode; `logits` is `none` or `last`. */
  chunks: readonly PrefillChunk[]
}

/** The last run's logits where they were kept. Rows are numbered as the run would have returned them. */
export interface KeptLogits {
  readonly maxRows: number
  /** Tokens of a span: `Shortlist.sums` has one number for each. */
  readonly spanLength: number
  /**
   * What is asked of several rows, each at most once, in one go; `undefined`: the row is only to be had whole. Sums are valid until
   * the next call.
   */
  shortlists(asks: readonly ShortlistAsk[]): (Shortlist | undefined)[]
  /** Logits of a row's span; valid until the next call. */
  spans(asks: readonly { row: number; span: number }[]): Float32Array[]
  /** A whole row; valid until the next call. */
  row(row: number): Float32Array
}

/** How a row's scores differ from its logits: `s = logit + bias`, then `s > 0 ? s / repetition : s · repetition`, less `penalty`. */
export interface ScoreChanges {
  /** Each token once. */
  tokens: Int32Array
  bias: Float32Array
  repetition: Float32Array
  penalty: Float32Array
}

export interface ShortlistAsk {
  row: number
  changes: ScoreChanges | undefined
  /** Bit `t % 32` of word `t >> 5` is 1 when token `t` is allowed. */
  mask: Int32Array | undefined
  /** Of the sums. */
  temperature: number
}

/** The tokens with the largest scores, and sums over all. Scores and sums are single precision's, in the device's own order. */
export interface Shortlist {
  /** In no order; no token that is not here has a larger score than any that is. */
  tokens: Int32Array
  /** As the model gave them. */
  logits: Float32Array
  /** The largest score. */
  best: number
  /** By span: Σ exp((score − best) / temperature). */
  sums: Float32Array
  /** Σ exp(logit − best). */
  logitSum: number
}

export interface KvRange {
  kvRow: number
  start: number
  end: number
}

/** KV of positions `[start, end)`, computed with everything before them in place; `bytes` bytes. */
export interface KvSnapshot {
  start: number
  end: number
  bytes: number
  data: Float32Array
}
