/**
 * Token embeddings, looked up outside the graph: the ids are known here, so the table is never multiplied nor copied,
 * and an adapter's change of it is exact and costs only the rows that use it.
 */

import { RingletError } from '../../../shared/errors.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import type { EmbeddingDelta } from './loaded-adapter.ts'
import type { WeightSource } from './weight-source.ts'

/** float32, or bfloat16's bits: half the memory where nothing is lost, as most checkpoints are stored in it. */
export type EmbeddingTable = Float32Array | Uint16Array

export async function readEmbeddingTable(source: WeightSource): Promise<EmbeddingTable> {
  const { weight } = source.decoder.embedding
  return (await source.readBfloat16?.(weight)) ?? (await source.readTensor(weight))
}

export class TokenEmbedding {
  readonly #hidden: number
  readonly #vocab: number
  readonly #multiplier: number
  #table: EmbeddingTable
  readonly #positions: Float32Array | undefined

  private constructor(decoder: DecoderSpec, table: EmbeddingTable, positions: Float32Array | undefined) {
    this.#hidden = decoder.hiddenSize
    this.#vocab = decoder.vocabSize
    this.#multiplier = decoder.embedding.multiplier ?? 1
    this.#table = table
    this.#positions = positions
  }

  /** `kept`: the table, where it lies on the disk already. */
  static async load(source: WeightSource, kept?: EmbeddingTable): Promise<TokenEmbedding> {
    const { positionWeight } = source.decoder.embedding
    const positions = positionWeight === undefined ? undefined : await source.readTensor(positionWeight)
    return new TokenEmbedding(source.decoder, kept ?? (await readEmbeddingTable(source)), positions)
  }

  /** Reads from another copy of the table from now on. */
  moveTo(table: EmbeddingTable): void {
    this.#table = table
  }

  get bytes(): number {
    return this.#table.byteLength + (this.#positions?.byteLength ?? 0)
  }

  /** Writes the embedding of `token` at `position` to `out[at …]`. */
  write(token: number, position: number, delta: EmbeddingDelta | undefined, out: Float32Array, at: number): void {
    const hidden = this.#hidden
    if (!Number.isInteger(token) || token < 0 || token >= this.#vocab) {
      throw new RingletError('internal', `token ${token} is outside the vocabulary of ${this.#vocab}`)
    }
    this.#copyRow(delta?.saved ?? this.#table, token, out, at)
    if (delta?.a !== undefined && delta.b !== undefined) {
      addLowRank(delta.a, delta.b, token, hidden, out, at)
    }
    if (this.#multiplier !== 1) {
      for (let i = at; i < at + hidden; i++) {
        out[i]! *= this.#multiplier
      }
    }
    if (this.#positions !== undefined) {
      const start = position * hidden
      for (let i = 0; i < hidden; i++) {
        out[at + i]! += this.#positions[start + i]!
      }
    }
  }

  #copyRow(table: EmbeddingTable, token: number, out: Float32Array, at: number): void {
    const start = token * this.#hidden
    if (table instanceof Float32Array) {
      out.set(table.subarray(start, start + this.#hidden), at)
      return
    }
    const bits = new Uint32Array(out.buffer, out.byteOffset, out.length)
    for (let i = 0; i < this.#hidden; i++) {
      bits[at + i] = table[start + i]! << 16
    }
  }
}

/** `a`: `[vocab, rank]`; `b`: `[rank, hidden]`, scaled. */
function addLowRank(
  a: Float32Array,
  b: Float32Array,
  token: number,
  hidden: number,
  out: Float32Array,
  at: number,
): void {
  const rank = b.length / hidden
  for (let r = 0; r < rank; r++) {
    const factor = a[token * rank + r]!
    for (let i = 0; i < hidden; i++) {
      out[at + i]! += factor * b[r * hidden + i]!
    }
  }
}
