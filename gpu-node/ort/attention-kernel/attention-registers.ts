/**
 * The attention kernel's two products in vector registers: how many query heads, and how many parts of them, are summed at a time,
 * and which register holds what. Cached keys and values go to registers 0 and 1.
 */

import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { type AttentionShape, BLOCK_POSITIONS } from './attention-layout.ts'

type Registers = Pick<VectorAssembler, 'lanes' | 'vectors'>
type Heads = Pick<AttentionShape, 'headSize' | 'group'>

/** Scores of some query heads of a group with a block of positions. */
export interface ScoreChunk {
  heads: readonly number[]
  /** Sums of each score, over every `chains`-th element: they hide the multiply-add's latency. */
  chains: number
  /** Gets an element of a query in all lanes; absent: multiply-adds take it from memory for nothing. */
  query?: number
  key: (element: number, vector: number) => number
  sum: (i: number, vector: number, chain: number) => number
}

/** Sums of some parts (of a vector's size) of some query heads of a group. */
export interface ValueChunk {
  heads: readonly number[]
  parts: readonly number[]
  value: (j: number) => number
  power: (i: number) => number
  sum: (i: number, j: number) => number
}

const CACHED = 2
const MOST_CHAINS = 4
/** Until a multiply-add's sum can be added to. */
const LATENCY_CYCLES = 4
/** Multiply-adds that a core begins, and powers that it loads beside them. */
const EACH_CYCLE = 2
/** To load a vector of a value, which comes from the second cache. */
const VALUE_CYCLES = 1

/** Vectors in a block of positions. */
export function blockVectors({ lanes }: Registers): number {
  return BLOCK_POSITIONS / lanes
}

/** Where they lie in it, in bytes of float32. */
export function vectorOffsets(code: Registers): number[] {
  return Array.from({ length: blockVectors(code) }, (_, vector) => vector * code.lanes * 4)
}

export function scoreChunks(code: Registers, shape: Heads): ScoreChunk[] {
  const vectors = blockVectors(code)
  if (vectors === 1) {
    return wideHeads(shape).map((heads) => {
      const chains = Math.max(1, Math.min(MOST_CHAINS, Math.floor(28 / heads.length)))
      return { heads, chains, key: (element) => element & 1, sum: (i, _, chain) => CACHED + i * chains + chain }
    })
  }
  const first = CACHED + 1
  const room = Math.floor((code.vectors - first) / vectors)
  return equalChunks(shape.group, room).map((heads) => {
    const chains = Math.min(MOST_CHAINS, Math.floor(room / heads.length))
    return {
      heads,
      chains,
      query: CACHED,
      key: (_, vector) => vector,
      sum: (i, vector, chain) => first + (i * vectors + vector) * chains + chain,
    }
  })
}

export function valueChunks(code: Registers, shape: Heads): ValueChunk[] {
  const all = shape.headSize / code.lanes
  const [heads, parts] =
    blockVectors(code) === 1 ? [wideHeads(shape), [counted(all)]] : narrowSums(shape.group, all, code.vectors - CACHED)
  return heads.flatMap((heads) => parts.map((parts) => valueChunk(heads, parts)))
}

function valueChunk(heads: readonly number[], parts: readonly number[]): ValueChunk {
  const firstSum = CACHED + heads.length
  return {
    heads,
    parts,
    value: (j) => j & 1,
    power: (i) => CACHED + i,
    sum: (i, j) => firstSum + i * parts.length + j,
  }
}

/** With 32 registers: query heads whose sums fit as a whole. */
function wideHeads({ headSize, group }: Heads): number[][] {
  return equalChunks(group, Math.max(1, Math.floor(29 / (headSize / BLOCK_POSITIONS + 1))))
}

/** With few registers: the heads and parts at a time that take the fewest cycles a position. */
function narrowSums(group: number, all: number, registers: number): [heads: number[][], parts: number[][]] {
  let best: { cycles: number; sums: [number[][], number[][]] } | undefined
  for (let most = 1; most <= group && 2 * most <= registers; most++) {
    const heads = equalChunks(group, most)
    const parts = equalChunks(all, Math.floor((registers - most) / most))
    const cycles = total(heads, (h) => total(parts, (p) => sumCycles(h.length, p.length)))
    if (best === undefined || cycles < best.cycles) {
      best = { cycles, sums: [heads, parts] }
    }
  }
  return best?.sums ?? [[], []]
}

function sumCycles(heads: number, parts: number): number {
  return Math.max(LATENCY_CYCLES, (heads * parts) / EACH_CYCLE, heads / EACH_CYCLE + parts * VALUE_CYCLES)
}

function total<T>(list: readonly T[], amount: (item: T) => number): number {
  return list.reduce((sum, item) => sum + amount(item), 0)
}

function equalChunks(count: number, most: number): number[][] {
  const size = Math.ceil(count / Math.ceil(count / most))
  const chunks = Array.from({ length: Math.ceil(count / size) }, (_, i) => i * size)
  return chunks.map((start) => counted(count).slice(start, start + size))
}

function counted(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}
