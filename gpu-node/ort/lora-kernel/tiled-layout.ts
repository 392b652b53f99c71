/**
 * How the int8 product (`linear-kernel/`) wants a group's adapter, and packing it so.
 *
 * A of all parts, stacked along the rank and filled up to blocks of sixteen ranks: `[block][K / 4][16 ranks][4 inputs]`. Of each
 * part B in tiles of sixteen outputs: `[ranks / 4][16 outputs][4 ranks]`, then sixteen float32 scales. Codes lie around 128; the
 * steps of A's ranks and the scaling are folded into B, so that A·x needs none, and small ranks take no bits from large ones.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'
import { fitsLinearKernel, GROUP_INPUTS, MOST_PARTS, MOST_RANKS, TILE_OUTPUTS } from '../linear-kernel/linear-layout.ts'
import type { KernelSegment } from './kernel-layout.ts'
import { addressOf } from './lora-op.ts'

/** int64 words of a matrix's record in an adapter's table: A, its blocks of ranks; a part's B, groups of four ranks, first rank. */
export const RECORD = { a: 0, rankBlocks: 1, parts: 2, partWords: 3, partB: 0, partGroups: 1, partRank: 2 } as const
export const RECORD_WORDS = RECORD.parts + MOST_PARTS * RECORD.partWords

export interface TiledGroup {
  rankBlocks: number
  a: Uint8Array
  parts: { part: number; groups: number; firstRank: number; b: Uint8Array }[]
}

/** Why the product cannot take such a group; `undefined`: it can. */
export function tiledObjection(inputs: number, parts: readonly { rank: number; outs: number }[]): string | undefined {
  if (parts.some(({ outs }) => !fitsLinearKernel(inputs, outs))) {
    return `its ${inputs} inputs are not blocks of ${QUANTISED_BLOCK}, or its outputs no tiles of ${TILE_OUTPUTS}`
  }
  const ranks = parts.reduce((total, { rank }) => total + padded(rank), 0)
  return ranks > MOST_RANKS ? `its ${ranks} stacked ranks are more than ${MOST_RANKS}` : undefined
}

/** `part` of a segment: which of the matrix's parts it adapts. */
export function packTiled(inputs: number, segments: readonly (KernelSegment & { part: number })[]): TiledGroup {
  const ranks = segments.reduce((total, { rank }) => total + padded(rank), 0)
  const rankBlocks = Math.ceil(ranks / TILE_OUTPUTS)
  const a = new Uint8Array(rankBlocks * inputs * TILE_OUTPUTS).fill(ZERO)
  const words = new Uint32Array(a.buffer)
  let firstRank = 0
  const parts = segments.map(({ part, rank, loraA, loraB, scaling, outs }) => {
    const steps = new Float64Array(rank)
    for (let r = 0; r < rank; r++) {
      const stacked = firstRank + r
      const lane = stacked % TILE_OUTPUTS
      steps[r] = quantise(loraA, r * inputs, inputs, words, ((stacked - lane) * inputs) / GROUP_INPUTS + lane)
    }
    const packed = { part, groups: padded(rank) / GROUP_INPUTS, firstRank, b: packB(loraB, rank, outs, scaling, steps) }
    firstRank += padded(rank)
    return packed
  })
  return { rankBlocks, a, parts }
}

/** `offset`: in words. The group's arrays must live, and stay where they are, as long as the table is used. */
export function writeTiledRecord(table: BigInt64Array, offset: number, group: TiledGroup): void {
  table[offset + RECORD.a] = addressOf(group.a)
  table[offset + RECORD.rankBlocks] = BigInt(group.rankBlocks)
  for (const { part, b, groups, firstRank } of group.parts) {
    const start = offset + RECORD.parts + part * RECORD.partWords
    table[start + RECORD.partB] = addressOf(b)
    table[start + RECORD.partGroups] = BigInt(groups)
    table[start + RECORD.partRank] = BigInt(firstRank)
  }
}

const ZERO = 128
const ROUNDED_ZERO = ZERO + 0.5

function padded(rank: number): number {
  return Math.ceil(rank / GROUP_INPUTS) * GROUP_INPUTS
}

function packB(loraB: Float32Array, rank: number, outs: number, scaling: number, steps: Float64Array): Uint8Array {
  const tileWords = (padded(rank) / GROUP_INPUTS + 1) * TILE_OUTPUTS
  const b = new Uint8Array((outs / TILE_OUTPUTS) * tileWords * 4)
  const words = new Uint32Array(b.buffer)
  const scales = new Float32Array(b.buffer)
  // Ranks that fill up the last group stay zero.
  const row = new Float32Array(padded(rank))
  for (let out = 0; out < outs; out++) {
    for (let r = 0; r < rank; r++) {
      row[r] = loraB[out * rank + r]! * steps[r]!
    }
    const lane = out % TILE_OUTPUTS
    const start = ((out - lane) / TILE_OUTPUTS) * tileWords + lane
    scales[start + tileWords - TILE_OUTPUTS] = quantise(row, 0, row.length, words, start) * scaling
  }
  return b
}

/**
 * Numbers `from` … `from + count - 1` as codes around 128, four in a word, into every sixteenth word from `start` on. Returns the
 * step, which brings the largest magnitude to 127; 0 where all are zero, or too small for a step in float32: a rank of A like that
 * must leave nothing in B either, or it would take the bits of the others.
 */
function quantise(source: Float32Array, from: number, count: number, words: Uint32Array, start: number): number {
  let largest = 0
  for (let i = from; i < from + count; i++) {
    const magnitude = Math.abs(source[i]!)
    if (magnitude > largest) {
      largest = magnitude
    }
  }
  const step = Math.fround(largest / 127)
  const inverse = step === 0 ? 0 : 1 / step
  let at = start
  for (let i = from; i < from + count; i += GROUP_INPUTS) {
    // Positive, so that truncation rounds to the nearest.
    words[at] =
      (source[i]! * inverse + ROUNDED_ZERO) |
      0 |
      (((source[i + 1]! * inverse + ROUNDED_ZERO) | 0) << 8) |
      (((source[i + 2]! * inverse + ROUNDED_ZERO) | 0) << 16) |
      (((source[i + 3]! * inverse + ROUNDED_ZERO) | 0) << 24)
    at += TILE_OUTPUTS
  }
  return step
}
