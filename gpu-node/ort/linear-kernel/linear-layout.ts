/**
 * How the int8 product wants a matrix in memory, and bringing it there; what its functions hand to each other. Pure.
 *
 * Tiles of sixteen outputs, each front to back: for each block of 32 inputs eight groups `[16 outputs][4 inputs]` of codes around
 * 128, then the block's sixteen float32 scales. So every weight is read once, in order, beside its scale.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'

export const TILE_OUTPUTS = 16
/** Inputs that one instruction multiplies. */
export const GROUP_INPUTS = 4
/** Of a group of a tile. */
export const GROUP_BYTES = TILE_OUTPUTS * GROUP_INPUTS
export const CODE_BYTES = TILE_OUTPUTS * QUANTISED_BLOCK
/** Of a block of a tile. */
export const TILE_BLOCK_BYTES = CODE_BYTES + TILE_OUTPUTS * 4

/** What becomes of the product: it stays, or its first half `g` and second half `u` become `silu(g)·u`. */
export const ACTIVATIONS = { none: 0, silu: 1 } as const
export type LinearActivation = keyof typeof ACTIVATIONS

/** Parts of a matrix that may have adapters of their own. */
export const MOST_PARTS = 3

/** Words of the constant input `shape`. */
export const SHAPE_WORDS = {
  outputs: 0,
  adapterOffset: 1,
  epsilon: 2,
  activation: 3,
  secondPart: 4,
  thirdPart: 5,
} as const

export interface LinearShape {
  outputs: number
  /** Bytes from the start of an adapter's table to this matrix's record. */
  adapterOffset?: number
  /** Of the norm before the product. */
  epsilon?: number
  activation?: LinearActivation
  /** Outputs of each part; all in one where they are not given. */
  parts?: readonly number[]
}

export function linearShapeWords({ outputs, adapterOffset, epsilon, activation, parts }: LinearShape): number[] {
  const [first = outputs, second = outputs] = parts ?? []
  const words: number[] = []
  words[SHAPE_WORDS.outputs] = outputs
  words[SHAPE_WORDS.adapterOffset] = adapterOffset ?? 0
  words[SHAPE_WORDS.epsilon] = floatBits(epsilon ?? 0)
  words[SHAPE_WORDS.activation] = ACTIVATIONS[activation ?? 'none']
  // Of parts that a matrix lacks no tile is the first.
  words[SHAPE_WORDS.secondPart] = first / TILE_OUTPUTS
  words[SHAPE_WORDS.thirdPart] = (first + second) / TILE_OUTPUTS
  return words
}

export function floatBits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0]!
}

/** The addresses that the operator's functions get as their argument; 0: the input was left out. */
export const ARGUMENT = {
  x: 0,
  shape: 8,
  sizes: 16,
  weights: 24,
  norm: 32,
  bias: 40,
  addTo: 48,
  rows: 56,
  base: 64,
  out: 72,
  work: 80,
} as const

/** Most ranks of a matrix's adapter, all parts together. */
export const MOST_RANKS = 1024
/**
 * What a token's adapter adds to a part: B's address, its groups of ranks, the address of A·x in codes; then float32 scale and
 * correction of these codes, and of those that say what the first ones rounded off: an adapter adds no rounding but of its weights.
 */
export const ENTRY = {
  b: 0,
  groups: 8,
  codes: 16,
  scale: 24,
  correction: 28,
  restScale: 32,
  restCorrection: 36,
  bytes: 40,
} as const
const MOST_LORA_CODES = MOST_RANKS + MOST_PARTS * TILE_OUTPUTS
/** Steps of the second codes in one of the first. */
export const REST_STEPS = 254

/**
 * Working memory of a token: K codes of x, of `xBytes` each (`VectorAssembler`); of each block of them a float32 scale, and -128 · Σ codes as int32. For adapters: K codes
 * of what the first ones rounded off, and their corrections; an entry a part; the codes of A·x, and `loraRests` behind each of them
 * the second one.
 */
export function workLayout(inputs: number, xBytes: 1 | 2) {
  const scales = inputs * xBytes
  const corrections = scales + (inputs / QUANTISED_BLOCK) * 4
  const rests = corrections + (inputs / QUANTISED_BLOCK) * 4
  const restCorrections = rests + inputs * xBytes
  const entries = restCorrections + (inputs / QUANTISED_BLOCK) * 4
  const loraCodes = entries + MOST_PARTS * ENTRY.bytes
  const loraRests = MOST_LORA_CODES * xBytes
  const end = Math.ceil((loraCodes + 2 * loraRests) / 64) * 64
  // Tokens a power of two apart would share few sets of a cache.
  return {
    scales,
    corrections,
    rests,
    restCorrections,
    entries,
    loraCodes,
    loraRests,
    bytes: end % 1024 === 0 ? end + 64 : end,
  }
}

export function fitsLinearKernel(inFeatures: number, outFeatures: number): boolean {
  return inFeatures % QUANTISED_BLOCK === 0 && outFeatures % TILE_OUTPUTS === 0
}

export function tiledBytes(inFeatures: number, outFeatures: number): number {
  return (outFeatures / TILE_OUTPUTS) * (inFeatures / QUANTISED_BLOCK) * TILE_BLOCK_BYTES
}

/** From MatMulNBits' layout: `weight` `[out, blocks, 32]`, `scales` `[out, blocks]`. */
export function tileMatrix(
  inFeatures: number,
  outFeatures: number,
  weight: Uint8Array,
  scales: Float32Array,
): Uint8Array {
  const tiled = new Uint8Array(new SharedArrayBuffer(tiledBytes(inFeatures, outFeatures)))
  tileRows(inFeatures, outFeatures, weight, scales, tiled)
  return tiled
}

const GROUPS = QUANTISED_BLOCK / GROUP_INPUTS
const TILE_BLOCK_WORDS = TILE_BLOCK_BYTES / 4

/** The same for whole tiles of a matrix, into their place in it. */
export function tileRows(
  inFeatures: number,
  rows: number,
  weight: Uint8Array,
  scales: Float32Array,
  tiled: Uint8Array,
): void {
  const blocks = inFeatures / QUANTISED_BLOCK
  const codes = new Uint32Array(tiled.buffer, tiled.byteOffset, tiled.byteLength / 4)
  const floats = new Float32Array(tiled.buffer, tiled.byteOffset, tiled.byteLength / 4)
  // Four codes at once: a group of inputs stays together.
  const source = new Uint32Array(weight.buffer, weight.byteOffset, weight.byteLength / GROUP_INPUTS)
  const tiles = rows / TILE_OUTPUTS
  for (let tile = 0; tile < tiles; tile++) {
    for (let block = 0; block < blocks; block++) {
      const start = (tile * blocks + block) * TILE_BLOCK_WORDS
      for (let lane = 0; lane < TILE_OUTPUTS; lane++) {
        const from = (tile * TILE_OUTPUTS + lane) * blocks + block
        const to = start + lane
        for (let group = 0; group < GROUPS; group++) {
          codes[to + group * TILE_OUTPUTS] = source[from * GROUPS + group]!
        }
        floats[to + CODE_BYTES / 4] = scales[from]!
      }
    }
  }
}
