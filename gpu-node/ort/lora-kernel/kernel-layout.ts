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

/** `inputs` is K; allocates SharedArrayBuffers, so that the packing thread hands over without a copy. */
export function packGroup(inputs: number, segments: readonly KernelSegment[], weights: KernelWeights): PackedGroup {
  const objection = kernelObjection(inputs, segments)
  if (objection !== undefined) {
    throw new RingletError('internal', `the LoRA kernel cannot take this group: ${objection}`)
  }
  const ranks = segments.reduce((sum, segment) => sum + segment.rank, 0)
  const rankBlocks = Math.ceil(ranks / RANKS_PER_BLOCK)
  const a = allocate(weights, rankBlocks * inputs * RANKS_PER_BLOCK)
  const aScales = new Float32Array(new SharedArrayBuffer(rankBlocks * RANKS_PER_BLOCK * 4))
  const packed: PackedSegment[] = []
  let rankOffset = 0
  for (const segment of segments) {
    for (let rank = 0; rank < segment.rank; rank++) {
      const stacked = rankOffset + rank
      const source = segment.loraA.subarray(rank * inputs, (rank + 1) * inputs)
      const step = weights === 'int8' ? quantum(source, 0, 1, inputs) : 1
      aScales[stacked] = step * segment.scaling
      const start = Math.floor(stacked / RANKS_PER_BLOCK) * inputs * RANKS_PER_BLOCK + (stacked % RANKS_PER_BLOCK)
      scatter(source, 0, 1, inputs, step, a, start, RANKS_PER_BLOCK)
    }
    packed.push(packSegment(segment, rankOffset, weights))
    rankOffset += segment.rank
  }
  return { a, rankBlocks, aScales, segments: packed }
}

function packSegment(segment: KernelSegment, rankOffset: number, weights: KernelWeights): PackedSegment {
  const { rank, outs, loraB, outOffset } = segment
  const b = allocate(weights, outs * rank)
  const bScales = new Float32Array(new SharedArrayBuffer(outs * 4)).fill(1)
  const whole = outs - (outs % OUTS_PER_BLOCK)
  for (let out = 0; out < outs; out++) {
    const width = out < whole ? OUTS_PER_BLOCK : OUT_TAIL
    const inBlock = out < whole ? out % OUTS_PER_BLOCK : (out - whole) % OUT_TAIL
    const step = weights === 'int8' ? quantum(loraB, out * rank, 1, rank) : 1
    bScales[out] = step
    scatter(loraB, out * rank, 1, rank, step, b, (out - inBlock) * rank + inBlock, width)
  }
  return { rank, rankOffset, outOffset, outs, b, bScales }
}

function allocate(weights: KernelWeights, length: number): Float32Array | Int8Array {
  return weights === 'f32'
    ? new Float32Array(new SharedArrayBuffer(length * 4))
    : new Int8Array(new SharedArrayBuffer(length))
}

/** The step that brings the largest magnitude of a strided vector to 127; 1 where all are zero. */
function quantum(source: Float32Array, start: number, stride: number, count: number): number {
  let largest = 0
  for (let i = 0; i < count; i++) {
    largest = Math.max(largest, Math.abs(source[start + i * stride] ?? 0))
  }
  return largest === 0 ? 1 : largest / 127
}

function scatter(
  source: Float32Array,
  start: number,
  stride: number,
  count: number,
  step: number,
  target: Float32Array | Int8Array,
  targetStart: number,
  targetStride: number,
): void {
  const round = target instanceof Int8Array
  for (let i = 0; i < count; i++) {
    const value = (source[start + i * stride] ?? 0) / step
    target[targetStart + i * targetStride] = round ? Math.round(value) : value
  }
}
