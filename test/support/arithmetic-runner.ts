/**
 * A ModelRunner whose "model" is integer arithmetic: logits depend on every token in the row, its position and its adapter,
 * and on nothing else. KV rows are real memory, filled, copied, saved and restored as the engine asks, so that a step on the
 * wrong row, position or slot changes tokens. `arithmeticLogits` says what a sequence must see, without rows or slots.
 */

import type {
  DecodeBatch,
  KvRange,
  KvSnapshot,
  MixedBatch,
  MixedRuns,
  ModelRunner,
  PrefillChunk,
} from '../../gpu-node/engine/engine-types.ts'
import type { PackedAdapter } from '../../gpu-node/model/packed-adapter.ts'

export interface ArithmeticOptions {
  maxRows: number
  maxPositions: number
  vocabSize: number
  hiddenSize: number
  adapterSlots: number
  /** Decoding rows and prompts run together, whatever their adapters. */
  mixed?: boolean
}

export const SMALL_ARITHMETIC: ArithmeticOptions = {
  maxRows: 4,
  maxPositions: 96,
  vocabSize: 40,
  hiddenSize: 6,
  adapterSlots: 2,
}

/** The whole of an adapter is one number. */
export function arithmeticAdapter(value: number): PackedAdapter {
  const weights = new Float32Array(new SharedArrayBuffer(4))
  weights[0] = value
  const features = { embedding: false, head: false, bias: false, magnitude: false }
  return {
    digest: `adapter-${value}`,
    rank: 1,
    bytes: 4,
    parts: { value: weights },
    layout: 'graph',
    groups: {},
    features,
  }
}

/** Logits `[vocabSize]` after `tokens`, with the adapter's number or none: the slow, obvious version. */
export function arithmeticLogits(tokens: ArrayLike<number>, adapterValue: number, vocabSize: number): Float32Array {
  let state = 0
  for (let position = 0; position < tokens.length; position++) {
    state = fold(state, cellOf(tokens[position] as number, position, adapterValue))
  }
  return logitsOf(state, vocabSize)
}

/** Final hidden states `[tokens.length, hiddenSize]`. */
export function arithmeticHiddenStates(
  tokens: ArrayLike<number>,
  adapterValue: number,
  hiddenSize: number,
): Float32Array {
  const states = new Float32Array(tokens.length * hiddenSize)
  let state = 0
  for (let position = 0; position < tokens.length; position++) {
    state = fold(state, cellOf(tokens[position] as number, position, adapterValue))
    states.set(logitsOf(state, hiddenSize), position * hiddenSize)
  }
  return states
}

export class ArithmeticRunner implements ModelRunner {
  readonly maxRows: number
  readonly maxPositions: number
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly adapterSlots: number
  readonly mixed?: MixedRuns
  /** `[maxRows, maxPositions]`; integers below 2^24, exact in single precision. NaN until written. */
  readonly #kv: Float32Array
  /** NaN while the slot is empty. */
  readonly #slots: Float64Array

  constructor(options: ArithmeticOptions) {
    this.maxRows = options.maxRows
    this.maxPositions = options.maxPositions
    this.vocabSize = options.vocabSize
    this.hiddenSize = options.hiddenSize
    this.adapterSlots = options.adapterSlots
    if (options.mixed === true) {
      this.mixed = { takes: () => true, run: (batch) => this.#runMixed(batch) }
    }
    this.#kv = new Float32Array(options.maxRows * options.maxPositions).fill(Number.NaN)
    this.#slots = new Float64Array(options.adapterSlots).fill(Number.NaN)
  }

  prefill({ logits, ...chunk }: PrefillChunk): Float32Array {
    const states = this.#states(chunk)
    const wanted = logits === 'none' ? [] : logits === 'last' ? states.slice(-1) : states
    return concatenate(wanted.map((state) => logitsOf(state, this.vocabSize)))
  }

  decode({ tokens, positions, adapterSlots }: DecodeBatch): Float32Array {
    const rows = Array.from(tokens, (token, kvRow) => {
      const startPosition = positions[kvRow] as number
      return this.#states({ kvRow, tokens: Int32Array.of(token), startPosition, adapterSlot: adapterSlots[kvRow] })
    })
    return concatenate(rows.map(([state]) => logitsOf(state as number, this.vocabSize)))
  }

  #runMixed({ decode, chunks }: MixedBatch): Float32Array {
    return concatenate([this.decode(decode), ...chunks.map((chunk) => this.prefill(chunk))])
  }

  hiddenStates(chunk: Omit<PrefillChunk, 'logits'>): Float32Array {
    return concatenate(this.#states(chunk).map((state) => logitsOf(state, this.hiddenSize)))
  }

  copyRow(from: number, to: number, positions: number): void {
    this.#row(to).set(this.#row(from).subarray(0, positions))
  }

  saveKv({ kvRow, start, end }: KvRange): KvSnapshot {
    const data = this.#row(kvRow).slice(start, end)
    return { start, end, bytes: data.byteLength, data }
  }

  restoreKv(kvRow: number, snapshot: KvSnapshot, end: number): void {
    this.#row(kvRow).set(snapshot.data.subarray(0, end - snapshot.start), snapshot.start)
  }

  loadAdapter(adapterSlot: number, adapter: PackedAdapter): void {
    this.#slots[adapterSlot] = adapter.parts.value?.[0] ?? Number.NaN
  }

  unloadAdapter(adapterSlot: number): void {
    this.#slots[adapterSlot] = Number.NaN
  }

  dispose(): void {}

  #row(kvRow: number): Float32Array {
    return this.#kv.subarray(kvRow * this.maxPositions, (kvRow + 1) * this.maxPositions)
  }

  /** Fills the chunk's positions; the row's state after each of them. */
  #states({ kvRow, tokens, startPosition, adapterSlot }: Omit<PrefillChunk, 'logits'>): number[] {
    const row = this.#row(kvRow)
    const adapterValue = adapterSlot === undefined ? 0 : (this.#slots[adapterSlot] as number)
    let state = 0
    for (let position = 0; position < startPosition; position++) {
      state = fold(state, row[position] as number)
    }
    return Array.from(tokens, (token, i) => {
      row[startPosition + i] = cellOf(token, startPosition + i, adapterValue)
      state = fold(state, row[startPosition + i] as number)
      return state
    })
  }
}

/** For an engine thread: see `ThreadPart`. */
export async function createRunner(
  options: ArithmeticOptions,
  onProgress: (progress: { stage: string; fraction: number }) => void,
): Promise<ModelRunner> {
  onProgress({ stage: 'read', fraction: 1 })
  return new ArithmeticRunner(options)
}

/** NaN where the adapter is missing or a position was never filled: it spreads to the logits. */
function cellOf(token: number, position: number, adapterValue: number): number {
  return Number.isNaN(adapterValue) ? Number.NaN : mix(token * 31 + position * 1009 + adapterValue * 40507) >>> 8
}

function fold(state: number, cell: number): number {
  return Number.isNaN(cell) ? Number.NaN : mix(Math.imul(state, 31) + cell + 1)
}

/** In [0, 8). */
function logitsOf(state: number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) =>
    Number.isNaN(state) ? Number.NaN : mix(state + i * 7919) / 2 ** 29,
  )
}

/** A 32-bit finaliser (MurmurHash3). */
function mix(word: number): number {
  let h = word | 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

function concatenate(rows: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(rows.reduce((sum, row) => sum + row.length, 0))
  let at = 0
  for (const row of rows) {
    whole.set(row, at)
    at += row.length
  }
  return whole
}
