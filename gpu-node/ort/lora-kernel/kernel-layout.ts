/**
 * How the LoRA kernel wants an adapter in memory, and packing it so. Pure: typed arrays in, typed arrays out.
 *
 * A group is the projections that share an input (q, k, v; or gate, up). Their A matrices are stacked along the rank, in
 * blocks of sixteen ranks `[block][K][16]`; each segment (one projection) has its own B, in blocks of 64 outputs
 * `[block][rank][64]` and a tail in blocks of 8. So every weight is read once, front to back. int8: one scale a rank for A,
 * one an output for B.
 */

import { RingletError } from '../../../shared/errors.ts'

export type KernelWeights = 'f32' | 'int8'

/** int64 words before the adapters' addresses in the input `rows`. */
export const ROW_HEADER_WORDS = 3

export const RANKS_PER_BLOCK = 16
export const OUTS_PER_BLOCK = 64
export const OUT_TAIL = 8
/** Most stacked ranks of one group: the kernel keeps `A·x` on its stack. */
export const SCRATCH_RANKS = 1024
/** K is taken in steps of this many. */
export const INPUT_STEP = 4

/** One projection of a group, float32 as in the adapter. */
export interface KernelSegment {
  rank: number
  /** `[rank, K]`. */
  loraA: Float32Array
  /** `[outs, rank]`. */
  loraB: Float32Array
  scaling: number
  /** Its place in the group's output. */
  outOffset: number
  outs: number
}

export interface PackedSegment {
  rank: number
  /** Of its first rank among the stacked ones. */
  rankOffset: number
  outOffset: number
  outs: number
  b: Float32Array | Int8Array
  /** One an output; all 1 and unread in f32. */
  bScales: Float32Array
}

export interface PackedGroup {
  a: Float32Array | Int8Array
  rankBlocks: number
  /** One a stacked rank, the LoRA scaling included. */
  aScales: Float32Array
  segments: PackedSegment[]
}

/** Why the kernel cannot take such a group; `undefined`: it can. */
export function kernelObjection(
  inputs: number,
  segments: readonly { rank: number; outs: number }[],
): string | undefined {
  const ranks = segments.reduce((sum, segment) => sum + segment.rank, 0)
  if (inputs % INPUT_STEP !== 0) {
    return `its ${inputs} inputs are not a multiple of ${INPUT_STEP}`
  }
  if (segments.some((segment) => segment.outs % OUT_TAIL !== 0)) {
    return `its outputs are not a multiple of ${OUT_TAIL}`
  }
  return ranks > SCRATCH_RANKS ? `its ${ranks} stacked ranks are more than ${SCRATCH_RANKS}` : undefined
}

/** `inputs` is K. */
export function packGroup(inputs: number, segments: readonly KernelSegment[], weights: KernelWeights): PackedGroup {
  const objection = kernelObjection(inputs, segments)
  if (objection !== undefined) {
    throw new RingletError('internal', `the LoRA kernel cannot take this group: ${objection}`)
  }
  const ranks = segments.reduce((sum, segment) => sum + segment.rank, 0)
  const rankBlocks = Math.ceil(ranks / RANKS_PER_BLOCK)
  const length = rankBlocks * inputs * RANKS_PER_BLOCK
  const a = weights === 'f32' ? new Float32Array(length) : new Int8Array(length)
  const aScales = new Float32Array(rankBlocks * RANKS_PER_BLOCK)
  const packed: PackedSegment[] = []
  let rankOffset = 0
  for (const segment of segments) {
    const { rank, loraA, scaling } = segment
    for (let r = 0; r < rank; r++) {
      const stacked = rankOffset + r
      const start = Math.floor(stacked / RANKS_PER_BLOCK) * inputs * RANKS_PER_BLOCK + (stacked % RANKS_PER_BLOCK)
      const step =
        a instanceof Int8Array
          ? quantiseStrided(loraA, r * inputs, inputs, a, start, RANKS_PER_BLOCK)
          : copyStrided(loraA, r * inputs, inputs, a, start, RANKS_PER_BLOCK)
      aScales[stacked] = step * scaling
    }
    packed.push(packSegment(segment, rankOffset, weights))
    rankOffset += rank
  }
  return { a, rankBlocks, aScales, segments: packed }
}

function packSegment(segment: KernelSegment, rankOffset: number, weights: KernelWeights): PackedSegment {
  const { rank, outs, loraB, outOffset } = segment
  const b = weights === 'f32' ? new Float32Array(outs * rank) : new Int8Array(outs * rank)
  const bScales = new Float32Array(outs)
  const whole = outs - (outs % OUTS_PER_BLOCK)
  for (let out = 0; out < outs; out++) {
    const width = out < whole ? OUTS_PER_BLOCK : OUT_TAIL
    const inBlock = out < whole ? out % OUTS_PER_BLOCK : (out - whole) % OUT_TAIL
    const start = (out - inBlock) * rank + inBlock
    bScales[out] =
      b instanceof Int8Array
        ? quantiseStrided(loraB, out * rank, rank, b, start, width)
        : copyStrided(loraB, out * rank, rank, b, start, width)
  }
  return { rank, rankOffset, outOffset, outs, b, bScales }
}

/** Added and taken away again it rounds a double below 2^51 to the nearest whole number, ties to the even one. */
const ROUNDING = 1.5 * 2 ** 52

/**
 * Writes `count` numbers from `from` on to every `stride`th place from `start` on, in steps that bring the largest to ±127;
 * returns the step, 1 where all are zero. These two loops are most of the time that a load takes, so each has one type.
 */
function quantiseStrided(
  source: Float32Array,
  from: number,
  count: number,
  target: Int8Array,
  start: number,
  stride: number,
): number {
  let largest = 0
  for (let i = from; i < from + count; i++) {
    const magnitude = Math.abs(source[i]!)
    if (magnitude > largest) {
      largest = magnitude
    }
  }
  if (largest === 0) {
    return 1
  }
  const step = largest / 127
  for (let i = 0, at = start; i < count; i++, at += stride) {
    target[at] = (source[from + i]! / step + ROUNDING - ROUNDING) | 0
  }
  return step
}

/** The same without steps. */
function copyStrided(
  source: Float32Array,
  from: number,
  count: number,
  target: Float32Array,
  start: number,
  stride: number,
): number {
  for (let i = 0, at = start; i < count; i++, at += stride) {
    target[at] = source[from + i]!
  }
  return 1
}
