/**
 * Block quantisation of matrices `[rows, columns]` in the layout of com.microsoft.MatMulNBits: blocks of 32 columns with a float32
 * scale each; int8 around 128, int4 around a zero point of each block. Of two halves in a byte the first is the low one. Pure.
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
  /** int4: `[rows, ⌈blocks / 2⌉]`, two blocks a byte. */
  zeroPoints?: Uint8Array
}

/** Room for a matrix that `quantiseRows` fills; in SharedArrayBuffers. */
export function allocateQuantised(rows: number, columns: number, bits: QuantisedBits): QuantisedMatrix {
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  const shared = (bytes: number) => new Uint8Array(new SharedArrayBuffer(bytes))
  return {
    rows,
    columns,
    bits,
    weight: shared(rows * blocksPerRow * 4 * bits),
    scales: new Float32Array(new SharedArrayBuffer(rows * blocksPerRow * 4)),
    ...(bits === 4 ? { zeroPoints: shared(rows * Math.ceil(blocksPerRow / 2)) } : {}),
  }
}

/** Quantises rows `firstRow … firstRow + values.length / columns - 1`, so that no caller needs the whole matrix in float32. */
export function quantiseRows(matrix: QuantisedMatrix, firstRow: number, values: Float32Array): void {
  const { columns, weight, scales, zeroPoints } = matrix
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
      if (zeroPoints === undefined) {
        scales[at] = quantise8(values, start, end, weight, at * QUANTISED_BLOCK)
      } else {
        const { scale, zero } = quantise4(values, start, end, weight, (at * QUANTISED_BLOCK) / 2)
        scales[at] = scale
        const byte = (firstRow + row) * Math.ceil(blocksPerRow / 2) + (block >> 1)
        zeroPoints[byte] = block % 2 === 0 ? zero : zeroPoints[byte]! | (zero << 4)
      }
    }
  }
}

export function dequantise({ rows, columns, weight, scales, zeroPoints }: QuantisedMatrix): Float32Array {
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  const values = new Float32Array(rows * columns)
  for (let i = 0; i < values.length; i++) {
    const row = Math.floor(i / columns)
    const column = i % columns
    const block = row * blocksPerRow + Math.floor(column / QUANTISED_BLOCK)
    const place = block * QUANTISED_BLOCK + (column % QUANTISED_BLOCK)
    if (zeroPoints === undefined) {
      values[i] = (weight[place]! - 128) * scales[block]!
    } else {
      const zeroPlace = 2 * row * Math.ceil(blocksPerRow / 2) + Math.floor(column / QUANTISED_BLOCK)
      values[i] = (halfAt(weight, place) - halfAt(zeroPoints, zeroPlace)) * scales[block]!
    }
  }
  return values
}

function halfAt(packed: Uint8Array, place: number): number {
  return (packed[place >> 1]! >> (4 * (place & 1))) & 15
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
 * Parts of the block's range that are tried as int4's: a narrower one has finer steps and cuts its ends off. Relative error (RMS)
 * of normal weights: 0.0789 with the whole range, 0.0774 with these three, 0.0772 with 25 choices of either end; 0.0805 with the
 * best of three scales around a fixed zero point. MatMulNBits is as fast with zero points as without.
 */
const RANGES = [1, 0.95, 0.88]
const block = new Float64Array(QUANTISED_BLOCK)
const best = { scale: 0, zero: 8 }

/** Codes 0 … 15 by the smallest squared error over the ranges; the result is valid until the next call. */
function quantise4(values: Float32Array, start: number, end: number, packed: Uint8Array, at: number): typeof best {
  block.fill(0)
  let low = 0
  let high = 0
  for (let i = start; i < end; i++) {
    const value = values[i]!
    block[i - start] = value
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  best.scale = 0
  best.zero = 8
  // As for int8; the packed byte holds two zero points.
  if (Math.fround((high - low) / 15) === 0) {
    packed.fill(0x88, at, at + QUANTISED_BLOCK / 2)
    return best
  }
  const zero = Math.round((-15 * low) / (high - low))
  let bestGain = -1
  let bestInverse = 0
  for (const range of RANGES) {
    const inverse = 15 / (range * (high - low))
    // With codes fixed, the scale of least squares is Σwq / Σq², and it removes (Σwq)² / Σq² of the squared error.
    let wq = 0
    let qq = 0
    for (let i = 0; i < QUANTISED_BLOCK; i++) {
      const code = nearest4(block[i]! * inverse, zero) - zero
      wq += block[i]! * code
      qq += code * code
    }
    const gain = (wq * wq) / qq
    if (gain > bestGain) {
      bestGain = gain
      bestInverse = inverse
      best.scale = Math.fround(wq / qq)
    }
  }
  best.zero = zero
  for (let i = 0; i < QUANTISED_BLOCK; i += 2) {
    packed[at + i / 2] = nearest4(block[i]! * bestInverse, zero) | (nearest4(block[i + 1]! * bestInverse, zero) << 4)
  }
  return best
}

/** A number in units of the scale, as code 0 … 15. */
function nearest4(value: number, zero: number): number {
  return Math.max(0, Math.min(15, (value + zero + 0.5) | 0))
}
