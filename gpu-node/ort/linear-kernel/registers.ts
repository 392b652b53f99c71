/** Which vector registers the int8 product's functions use, with sixteen lanes or with eight. Pure. */

import type { VectorAssembler } from '../machine-code/vector-assembler.ts'

type Lanes = VectorAssembler['lanes']

/** Tokens that share a pass over a tile; the rest runs in smaller passes. */
export const TOKENS_AT_ONCE = { 16: [8, 4, 2, 1], 8: [4, 2, 1] } as const satisfies Record<Lanes, readonly number[]>
export const MOST_TOKENS_AT_ONCE = 8

/** Of one pass: some tokens and the vectors (`units`) of a tile's outputs. */
export interface TileRegisters {
  units: readonly number[]
  weights: (group: number, unit: number) => number
  /** Once the weights of a block are used up. */
  scales: (unit: number) => number
  /** A block's sum in int32. */
  whole: (token: number, unit: number) => number
  /** The same registers as `whole` where both do not fit: sums wait in memory for their next block then. */
  sum: (token: number, unit: number) => number
  sumsInMemory: boolean
  /** After the product, of one token: a tile of B, and what becomes of both codes of A·x; these units at a time. */
  adapter: (token: number) => {
    together: readonly (readonly number[])[]
    weights: (unit: number) => number
    product: (unit: number) => number
    rest: (unit: number) => number
  }
  /** Free beside the sums, with 0 … 3. */
  free: number
}

export function tileRegisters(lanes: Lanes, tokens: number): TileRegisters {
  return lanes === 16 ? wideTileRegisters() : narrowTileRegisters(tokens)
}

function wideTileRegisters(): TileRegisters {
  const whole = (token: number): number => 8 + token
  return {
    units: [0],
    weights: (group) => group % 4,
    scales: () => 4,
    whole,
    sum: (token) => 16 + token,
    sumsInMemory: false,
    adapter: (token) => ({
      together: [[0]],
      weights: () => token & 1,
      product: () => whole(token),
      rest: () => 2 + (token & 3),
    }),
    free: 4,
  }
}

/** Codes take two registers (`Avx2Assembler.loadCodes`). */
function narrowTileRegisters(tokens: number): TileRegisters {
  const sumsInMemory = tokens > 2
  const [whole, sum] = [4, sumsInMemory ? 4 : 8] as const
  return {
    units: [0, 1],
    weights: (_, unit) => 2 * unit,
    scales: (unit) => 2 * unit,
    whole: (token, unit) => whole + 2 * token + unit,
    sum: (token, unit) => sum + 2 * token + unit,
    sumsInMemory,
    adapter: () =>
      sumsInMemory
        ? { together: [[0], [1]], weights: () => 0, product: () => 2, rest: () => 3 }
        : {
            together: [[0, 1]],
            weights: (unit) => 2 * unit,
            product: (unit) => whole + unit,
            rest: (unit) => whole + 2 + unit,
          },
    free: 12,
  }
}

/** Of the quantisation, beside the constants in 5 … 10. */
export interface QuantiseRegisters {
  /** A block of x. */
  values: readonly number[]
  /** The norm's sums, one for each of `values`. */
  squares: readonly number[]
  largest: number
  step: number
  /** Of each of `values`; the first becomes their sum. */
  codes: readonly number[]
  rounded: number
  /** Of one part of A·x. */
  partCodes: number
  projection: {
    sum: readonly number[]
    whole: readonly number[]
    rest: readonly number[]
    weights: (group: number, unit: number) => number
    restStep: number
    /** These registers are not those of the constants. */
    keepsConstants: boolean
  }
}

export function quantiseRegisters(lanes: Lanes): QuantiseRegisters {
  return QUANTISE_REGISTERS[lanes]
}

const QUANTISE_REGISTERS: Record<Lanes, QuantiseRegisters> = {
  16: {
    values: [0, 1],
    squares: [2, 3],
    largest: 2,
    step: 3,
    codes: [11, 12],
    rounded: 13,
    partCodes: 14,
    projection: {
      sum: [0],
      whole: [1],
      rest: [4],
      weights: (group) => 2 + (group & 1),
      restStep: 11,
      keepsConstants: true,
    },
  },
  8: {
    values: [0, 1, 2, 3],
    squares: [4, 11, 12, 13],
    largest: 4,
    step: 11,
    codes: [4, 12, 12, 12],
    rounded: 13,
    partCodes: 4,
    projection: {
      sum: [0, 1],
      whole: [2, 3],
      rest: [4, 5],
      weights: (_, unit) => 6 + 2 * unit,
      restStep: 10,
      keepsConstants: false,
    },
  },
}
