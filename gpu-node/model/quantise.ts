/**
 * Block quantisation of matrices `[rows, columns]` in the layout of com.microsoft.MatMulNBits: blocks of 32 columns, a float32
 * scale each, zero point in the middle of the range (2^(bits - 1)), int4 with the first of two numbers in the low half. Pure.
 */

export const QUANTISED_BLOCK = 32
export type QuantisedBits = 4 | 8

export interface QuantisedMatrix {
  rows: number
  columns: number
  bits: QuantisedBits
  /** `[rows, ⌈columns / 32⌉, 4 · bits]`; columns beyond the last hold zero points. */
  weight: Uint8Array
  /** `[rows, ⌈columns / 32⌉]`. */
  scales: Float32Array
}

/** Room for a matrix that `quantiseRows` fills; in SharedArrayBuffers. */
export function allocateQuantised(rows: number, columns: number, bits: QuantisedBits): QuantisedMatrix {
  const blocks = rows * Math.ceil(columns / QUANTISED_BLOCK)
  return {
    rows,
    columns,
    bits,
    weight: new Uint8Array(new SharedArrayBuffer(blocks * 4 * bits)),
    scales: new Float32Array(new SharedArrayBuffer(blocks * 4)),
  }
}

/** Quantises rows `firstRow … firstRow + values.length / columns - 1`, so that no caller needs the whole matrix in float32. */
export function quantiseRows(matrix: QuantisedMatrix, firstRow: number, values: Float32Array): void {
  const { columns, bits, weight, scales } = matrix
  const rows = values.length / columns
  if (!Number.isInteger(rows) || firstRow + rows > matrix.rows) {
    throw new RangeError(`${values.length} numbers from row ${firstRow} on do not fit in [${matrix.rows}, ${columns}]`)
  }
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  for (let row = 0; row < rows; row++) {
    for (let block = 0; block < blocksPerRow; block++) {
      const start = row * columns + block * QUANTISED_BLOCK
      const end = Math.min(start + QUANTISED_BLOCK, (row + 1) * columns)
      const at = (firstRow + row) * blocksPerRow + block
      scales[at] =
        bits === 8
          ? quantise8(values, start, end, weight, at * QUANTISED_BLOCK)
          : quantise4(values, start, end, weight, (at * QUANTISED_BLOCK) / 2)
    }
  }
}

export function dequantise({ rows, columns, bits, weight, scales }: QuantisedMatrix): Float32Array {
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  const values = new Float32Array(rows * columns)
  for (let i = 0; i < values.length; i++) {
    const row = Math.floor(i / columns)
    const column = i % columns
    const block = row * blocksPerRow + Math.floor(column / QUANTISED_BLOCK)
    const place = block * QUANTISED_BLOCK + (column % QUANTISED_BLOCK)
    const code = bits === 8 ? weight[place]! : (weight[place >> 1]! >> (4 * (place & 1))) & 15
    values[i] = (code - 2 ** (bits - 1)) * scales[block]!
  }
  return values
}

/** Codes 1 … 255 around 128; returns the scale. */
function quantise8(values: Float32Array, start: number, end: number, codes: Uint8Array, at: number): number {
  let largest = 0
  for (let i = start; i < end; i++) {
    largest = Math.max(largest, Math.abs(values[i]!))
  }
  const scale = Math.fround(largest / 127)
  // Of a block of zeros, or of numbers too small for a float32 scale, nothing remains.
  const inverse = scale === 0 ? 0 : 1 / scale
  for (let i = start; i < end; i++) {
    // Positive, so that truncation rounds to the nearest.
    codes[at + i - start] = (values[i]! * inverse + 128.5) | 0
  }
  codes.fill(128, at + end - start, at + QUANTISED_BLOCK)
  return scale
}

/**
 * Divisors of the block's extreme that are tried as int4 scales: at -8 the extreme takes the one code without a counterpart, at
 * -7.4 and -8.7 the rest fits finer or coarser steps. Relative error (RMS) of normal weights: 0.0833 with -8 alone, 0.0805 with
 * these, 0.0797 with seven, 0.0795 with nineteen; 0.0775 with a searched zero point for each block beside its scale.
 */
const DIVISORS_4 = [-8, -7.4, -8.7]
const block = new Float64Array(QUANTISED_BLOCK)

/** Codes 0 … 15 around 8, by the smallest squared error over the divisors; returns the scale. */
function quantise4(values: Float32Array, start: number, end: number, packed: Uint8Array, at: number): number {
  block.fill(0)
  let extreme = 0
  for (let i = start; i < end; i++) {
    const value = values[i]!
    block[i - start] = value
    extreme = Math.abs(value) > Math.abs(extreme) ? value : extreme
  }
  // As for int8; the packed byte holds two zero points.
  if (Math.fround(extreme / 8) === 0) {
    packed.fill(0x88, at, at + QUANTISED_BLOCK / 2)
    return 0
  }
  let bestGain = -1
  let bestInverse = 0
  let bestScale = 0
  for (const divisor of DIVISORS_4) {
    const inverse = divisor / extreme
    // With codes fixed, the scale of least squares is Σwq / Σq², and it removes (Σwq)² / Σq² of the squared error.
    let wq = 0
    let qq = 0
    for (let i = 0; i < QUANTISED_BLOCK; i++) {
      const code = nearest4(block[i]! * inverse) - 8
      wq += block[i]! * code
      qq += code * code
    }
    const gain = (wq * wq) / qq
    if (gain > bestGain) {
      bestGain = gain
      bestInverse = inverse
      bestScale = wq / qq
    }
  }
  for (let i = 0; i < QUANTISED_BLOCK; i += 2) {
    packed[at + i / 2] = nearest4(block[i]! * bestInverse) | (nearest4(block[i + 1]! * bestInverse) << 4)
  }
  return Math.fround(bestScale)
}

/** A number in units of the scale, as code 0 … 15. */
function nearest4(value: number): number {
  return Math.max(0, Math.min(15, (value + 8.5) | 0))
}
