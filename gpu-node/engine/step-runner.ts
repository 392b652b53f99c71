/**
 * Runs the model for a step's rows and commits what comes out: tokens drawn, prompts advanced, texts pooled.
 * A run either succeeds and is committed, or throws `RunFailed` and has changed nothing.
 */

import { RingletError } from '../../shared/errors.ts'
import type { DecodeBatch, GeneratedToken, MixedRuns, ModelRunner, PrefillChunk } from './engine-types.ts'
import type { MaskSource, MaskState } from './mask-source.ts'
import { GuessTally, lookUp } from './prompt-lookup.ts'
import { type RowDraw, RowSampler, type RunLogits } from './sampling/row-sampler.ts'
import type { Draw, DrawContext } from './sampling/sampler.ts'
import { type EmbedWork, endReached, type GenerateWork, type Sequence } from './sequence.ts'
import type { SequenceTable } from './sequence-table.ts'
import { DECODE_TOKEN_COST } from './waiting-queue.ts'

/** The next tokens of a prompt. */
export interface PromptPart {
  sequence: Sequence
  tokens: number
}

/** The runner threw: nothing was committed. */
export class RunFailed extends Error {
  /** Whose prompt was run; a decode concerns all. */
  readonly sequence: Sequence | undefined

  constructor(cause: unknown, sequence?: Sequence) {
    super('the model failed to run', { cause })
    this.sequence = sequence
  }
}

export interface StepRunnerParts {
  runner: ModelRunner
  table: SequenceTable
  masks: MaskSource | undefined
  maxGuesses: number
  now: () => number
}

export class StepRunner {
  readonly #runner: ModelRunner
  readonly #table: SequenceTable
  readonly #masks: MaskSource | undefined
  readonly #now: () => number
  readonly #sampler: RowSampler
  readonly #maxGuesses: number
  readonly #tokens: Int32Array
  readonly #positions: Int32Array
  prefillTokens = 0
  decodeTokens = 0
  guessedTokens = 0
  rightGuesses = 0

  constructor({ runner, table, masks, maxGuesses, now }: StepRunnerParts) {
    this.#runner = runner
    this.#table = table
    this.#masks = masks
    this.#maxGuesses = maxGuesses
    this.#now = now
    this.#sampler = new RowSampler(runner.vocabSize, runner.kept)
    this.#tokens = new Int32Array(runner.maxRows)
    this.#positions = new Int32Array(runner.maxRows)
  }

  /** One token for every running sequence. */
  decode(): void {
    const running = this.#table.rows.running()
    const keep = this.#sampler.mayKeep(running.length)
    const batch = { ...this.#decodeBatch(running), keep }
    const logits = attempt(() => this.#runner.decode(batch))
    this.#commitDecode(running, keep ? undefined : logits)
  }

  /** The same, and parts of prompts, in one run; those of embeddings and with log-probabilities of the prompt run alone. */
  runMixed(mixed: MixedRuns, parts: readonly PromptPart[]): void {
    const running = this.#table.rows.running()
    const isLast = ({ sequence, tokens }: PromptPart) => tokens === sequence.remainingPrefill
    const chunks = parts.map(
      (part): PrefillChunk => ({ ...chunkOf(part.sequence, part.tokens), logits: isLast(part) ? 'last' : 'none' }),
    )
    const done = parts.filter(isLast)
    const logits = attempt(() => mixed.run({ decode: this.#decodeBatch(running), chunks }))
    // All of them before any row moves: a move takes the positions that are filled.
    for (const { sequence, tokens } of parts) {
      this.#advance(sequence, tokens)
    }
    this.#commitDecode(running, logits)
    for (const [i, { sequence }] of done.entries()) {
      this.#table.startRunning(sequence)
      this.#draw([{ sequence, row: running.length + i }], logits)
    }
  }

  /**
   * Rows that wait for a mask have had their run: they repeat their newest token at its own position, which writes the same
   * KV again, because the rows of a run are always 0 … n-1.
   */
  #decodeBatch(running: readonly Sequence[]): DecodeBatch {
    for (const [batchRow, sequence] of running.entries()) {
      const position = sequence.heldLogits === undefined ? sequence.filled : sequence.filled - 1
      this.#tokens[batchRow] = sequence.tokens[position] as number
      this.#positions[batchRow] = position
    }
    return {
      tokens: this.#tokens.subarray(0, running.length),
      positions: this.#positions.subarray(0, running.length),
      adapterSlots: running.map((sequence) => sequence.adapterSlot),
    }
  }

  #commitDecode(running: readonly Sequence[], logits: RunLogits): void {
    // From the last row to the first: a sequence that ends is replaced by the last one, whose turn has then been.
    const ran = running
      .map((sequence, row) => ({ sequence, row }))
      .filter(({ sequence }) => sequence.heldLogits === undefined)
      .reverse()
    for (const { sequence } of ran) {
      sequence.filled++
      this.decodeTokens++
      this.#table.queue.charge(sequence.tenantId, DECODE_TOKEN_COST)
    }
    this.#draw(ran, logits)
  }

  /**
   * In place of `decode`, when one sequence runs alone and its text suggests how it goes on: one run over its newest token and
   * the guesses after it. Each draw is made as if the tokens had come one by one, so a wrong guess changes nothing: its
   * position is written again. False when there is nothing to guess.
   */
  decodeAhead(): boolean {
    const [sequence, ...others] = this.#table.rows.running()
    if (sequence === undefined || others.length > 0 || sequence.heldLogits !== undefined) {
      return false
    }
    // Running sequences generate.
    const work = sequence.work as GenerateWork
    const guesses = this.#guess(sequence, work)
    if (guesses.length === 0) {
      return false
    }
    const tokens = Int32Array.of(sequence.tokens[sequence.filled] as number, ...guesses)
    const chunk = { ...chunkOf(sequence, 1), tokens }
    const keep = this.#sampler.mayKeep(tokens.length)
    const logits = attempt(() => this.#runner.prefill({ ...chunk, logits: 'all', keep }))
    let right = 0
    for (let i = 0; i < tokens.length; i++) {
      sequence.filled++
      this.decodeTokens++
      this.#table.queue.charge(sequence.tenantId, DECODE_TOKEN_COST)
      this.#draw([{ sequence, row: i }], keep ? undefined : logits)
      if (sequence.status !== 'running' || sequence.tokens[sequence.length - 1] !== guesses[i]) {
        break
      }
      right++
    }
    work.guesses?.report(guesses.length, right)
    this.guessedTokens += guesses.length
    this.rightGuesses += right
    return true
  }

  /** The next tokens of one prompt; with the last of them, the first draw. */
  prefill({ sequence, tokens }: PromptPart): void {
    const { work } = sequence
    if (work.kind === 'embed') {
      this.#embed(sequence, work, tokens)
      return
    }
    const start = sequence.filled
    const last = start + tokens === sequence.prefillEnd
    const wanted = work.promptLogprobs !== undefined ? 'all' : last ? 'last' : 'none'
    const keep = wanted === 'last' && this.#sampler.mayKeep(1)
    const chunk: PrefillChunk = { ...chunkOf(sequence, tokens), logits: wanted, keep }
    const logits = attempt(() => this.#runner.prefill(chunk), sequence)
    this.#advance(sequence, tokens)
    if (work.promptLogprobs !== undefined) {
      this.#scorePrompt(sequence, work, work.promptLogprobs, { logits, start, tokens })
    }
    if (!last) {
      return
    }
    if (work.promptLogprobs !== undefined) {
      const { promptLogprobs: logprobs, promptAlternatives: alternatives } = work
      const scores = alternatives === undefined ? { logprobs } : { logprobs, alternatives }
      this.#table.emit({ kind: 'prompt_logprobs', sequenceId: sequence.id, ...scores })
      delete work.promptLogprobs
      delete work.promptAlternatives
      const reason = endReached(sequence, this.#runner.maxPositions)
      if (reason !== undefined) {
        this.#table.end(sequence, { kind: 'finished', sequenceId: sequence.id, reason })
        return
      }
    }
    this.#table.startRunning(sequence)
    this.#draw([{ sequence, row: wanted === 'all' ? tokens - 1 : 0 }], keep ? undefined : logits)
  }

  /** Draws for rows whose mask has come since their run. True when one did. */
  drawHeld(): boolean {
    let drew = false
    for (const sequence of this.#table.rows.running().reverse()) {
      const held = sequence.heldLogits
      if (held !== undefined) {
        sequence.heldLogits = undefined
        this.#draw([{ sequence, row: 0 }], held)
        drew ||= sequence.heldLogits === undefined
      }
    }
    return drew
  }

  /** A grammar's masks come token by token, so its sequences are not guessed for. */
  #guess(sequence: Sequence, work: GenerateWork): Int32Array {
    if (this.#maxGuesses === 0 || work.request.grammarId !== undefined) {
      return new Int32Array(0)
    }
    work.guesses ??= new GuessTally(this.#maxGuesses)
    // The last token of all is drawn, not run.
    const room = sequence.tokens.length - sequence.length - 1
    return lookUp(sequence.tokens, sequence.length, Math.max(0, Math.min(work.guesses.next(), room)))
  }

  /** Draws for rows of a run, in this order; rows whose mask is pending keep their logits for later. */
  #draw(rows: readonly { sequence: Sequence; row: number }[], logits: RunLogits): void {
    const ready: (RowDraw & { sequence: Sequence; work: GenerateWork })[] = []
    for (const { sequence, row } of rows) {
      // Only generating sequences are ever drawn for.
      const work = sequence.work as GenerateWork
      const grammar = work.request.grammarId !== undefined
      const state: MaskState | undefined = grammar ? this.#masks?.mask(sequence.id) : undefined
      switch (state?.kind) {
        case 'pending':
          sequence.heldLogits = this.#sampler.row(logits, row).slice()
          break
        case 'ended':
          this.#table.end(sequence, { kind: 'finished', sequenceId: sequence.id, reason: 'grammar_end' })
          break
        case 'failed':
          this.#table.fail(sequence, new RingletError(state.code, state.message))
          break
        case 'ready':
        case undefined:
          ready.push({ sequence, work, row, context: contextOf(sequence, work, state?.mask) })
      }
    }
    const draws = this.#sampler.draw(logits, ready)
    for (const [i, { sequence, work, context }] of ready.entries()) {
      this.#take(sequence, work, draws[i]!, context.mask !== undefined)
    }
  }

  #take(sequence: Sequence, work: GenerateWork, draw: Draw, masked: boolean): void {
    if (draw.kind === 'not_finite') {
      const whose = sequence.adapter === undefined ? 'the model' : 'the model with this adapter'
      this.#table.fail(sequence, new RingletError('internal', `${whose} gave logits that are not finite`))
    } else if (draw.kind === 'nothing_allowed') {
      this.#table.fail(sequence, new RingletError('field_invalid', 'grammar and logit_bias together allow no token'))
    } else {
      this.#commit(sequence, work, draw.token, masked)
    }
  }

  #commit(sequence: Sequence, work: GenerateWork, token: GeneratedToken, masked: boolean): void {
    const { request } = work
    const first = sequence.length === sequence.prefillEnd && sequence.generated === request.deliveredTokens.length
    sequence.append(token.tokenId)
    work.history.add(token.tokenId)
    const event = { kind: 'token', sequenceId: sequence.id, token } as const
    this.#table.emit(first ? { ...event, prefillMs: this.#now() - (sequence.startedAt ?? 0) } : event)
    const isEos = request.eosTokens.includes(token.tokenId)
    // A grammar that allows the end of sequence has ended with it, whatever else is asked.
    if (isEos && (masked || !request.ignoreEos)) {
      this.#table.end(sequence, { kind: 'finished', sequenceId: sequence.id, reason: 'eos' })
      return
    }
    if (masked) {
      this.#masks?.accept(sequence.id, token.tokenId)
    }
    if (sequence.generated >= request.maxNewTokens || sequence.length >= this.#runner.maxPositions) {
      this.#table.end(sequence, { kind: 'finished', sequenceId: sequence.id, reason: 'length' })
    }
  }

  #embed(sequence: Sequence, work: EmbedWork, tokens: number): void {
    const states = attempt(() => this.#runner.hiddenStates(chunkOf(sequence, tokens)), sequence)
    const { hiddenSize } = this.#runner
    const firstTaken = work.pooling === 'mean' ? 0 : tokens - 1
    for (let token = firstTaken; token < tokens; token++) {
      for (let i = 0; i < hiddenSize; i++) {
        const before = work.pooling === 'mean' ? (work.pooled[i] as number) : 0
        work.pooled[i] = before + (states[token * hiddenSize + i] as number)
      }
    }
    this.#advance(sequence, tokens)
    if (sequence.remainingPrefill === 0) {
      const count = work.pooling === 'mean' ? sequence.length : 1
      const embedding = Float32Array.from(work.pooled, (sum) => sum / count)
      this.#table.emit({ kind: 'embedding', sequenceId: sequence.id, embedding })
      this.#table.end(sequence, { kind: 'finished', sequenceId: sequence.id, reason: 'length' })
    }
  }

  #advance(sequence: Sequence, tokens: number): void {
    sequence.filled += tokens
    sequence.failures = 0
    this.prefillTokens += tokens
  }

  /** `logits` are those after `tokens` tokens from position `start` on: each scores the next token of the prompt. */
  #scorePrompt(
    sequence: Sequence,
    work: GenerateWork,
    into: Float32Array,
    { logits, start, tokens }: { logits: Float32Array; start: number; tokens: number },
  ): void {
    const { vocabSize } = this.#runner
    const { alternatives } = work.request.sampling
    for (let j = 0; j < tokens && start + j + 1 < into.length; j++) {
      const position = start + j + 1
      const row = logits.subarray(j * vocabSize, (j + 1) * vocabSize)
      const scored = this.#sampler.whole.score(row, sequence.tokens[position] as number, alternatives)
      into[position] = scored.logprob
      if (work.promptAlternatives !== undefined) {
        work.promptAlternatives[position] = scored.alternatives
      }
    }
  }
}

function chunkOf(sequence: Sequence, tokens: number) {
  return {
    // A prefilling sequence owns a row.
    kvRow: sequence.kvRow as number,
    tokens: sequence.tokens.subarray(sequence.filled, sequence.filled + tokens),
    startPosition: sequence.filled,
    adapterSlot: sequence.adapterSlot,
    promptPositions: sequence.promptLength,
  }
}

function contextOf(sequence: Sequence, work: GenerateWork, mask: Int32Array | undefined): DrawContext {
  return {
    params: work.request.sampling,
    history: work.history,
    previousToken: sequence.tokens[sequence.length - 1] as number,
    draw: sequence.generated,
    mask,
  }
}

function attempt<T>(run: () => T, sequence?: Sequence): T {
  try {
    return run()
  } catch (error) {
    throw new RunFailed(error, sequence)
  }
}
