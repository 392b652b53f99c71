/**
 * What the attention kernel needs to know of a model, and how it keeps the KV cache.
 *
 * A row of a head holds `maxPositions` positions (whole blocks of sixteen). Values lie position by position, `[position][D]`;
 * keys in blocks, `[block][D][16 positions]`, so that the products of a query with sixteen positions are lanes of a
 * vector, or of two.
 */

export type KvFormat = 'f32' | 'f16'

export const KV_BYTES = { f32: 4, f16: 2 } as const
export const BLOCK_POSITIONS = 16
/** Of a block's scores, float32. */
export const BLOCK_BYTES = BLOCK_POSITIONS * 4

export interface AttentionShape {
  headSize: number
  /** Query heads that share a key head. */
  group: number
  /** Half of the rotated part of a head; 0: no rotary embedding. */
  rotaryHalf: number
  kv: KvFormat
}

/** Floats in the widest vector register that code is written for. */
const WIDEST_VECTOR = 16
/** Largest frame that the kernel may put on a thread's stack. */
const MAX_FRAME_BYTES = 128 * 1024

/** Whether the kernel can compute such heads. */
export function fitsAttentionKernel(shape: Omit<AttentionShape, 'kv'>): boolean {
  const { headSize, rotaryHalf } = shape
  const whole = headSize % WIDEST_VECTOR === 0 && rotaryHalf % WIDEST_VECTOR === 0
  return whole && headSize <= 256 && attentionFrame(shape).bytes <= MAX_FRAME_BYTES
}

/** Positions whose scores are held at once. */
export const SCORE_POSITIONS = 256
export const SCORE_BYTES = SCORE_POSITIONS * 4

/** Places on the stack, from rsp: for each head of a group its query, scores, sums, and three vectors of softmax's state. */
export function attentionFrame({ headSize, group }: Omit<AttentionShape, 'kv'>) {
  const head = headSize * 4
  const query = 0
  const scores = query + group * head
  const sums = scores + group * SCORE_POSITIONS * 4
  const largest = sums + group * head
  const vectors = group * WIDEST_VECTOR * 4
  const total = largest + vectors
  const correction = total + vectors
  return { query, scores, sums, largest, total, correction, bytes: correction + vectors }
}

/** Words of the input `tokens`: a header of three (count, the output's first two sizes), then three for each token. */
export const TOKEN_HEADER_WORDS = 3
export const TOKEN_WORDS = 3

/** Words of the constant input `shape`. Strides and offsets in bytes; scale and softcap as float32 bits; window 0: all. */
export const SHAPE_WORDS = {
  kvHeads: 0,
  maxPositions: 1,
  window: 2,
  queryStride: 3,
  keyStride: 4,
  valueStride: 5,
  keyOffset: 6,
  valueOffset: 7,
  scale: 8,
  softcap: 9,
} as const

export type ShapeWords = Record<keyof typeof SHAPE_WORDS, number>

export function shapeWords(words: ShapeWords): number[] {
  const list: number[] = []
  for (const [name, index] of Object.entries(SHAPE_WORDS)) {
    list[index] = words[name as keyof ShapeWords]
  }
  return list
}

export function floatBits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0]!
}
