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

/** Room for a matrix that `quantiseRows` fills, of what `take` gives at multiples of four bytes; SharedArrayBuffers otherwise. */
export function allocateQuantised(
  rows: number,
  columns: number,
  bits: QuantisedBits,
  take: (bytes: number) => Uint8Array = (bytes) => new Uint8Array(new SharedArrayBuffer(bytes)),
): QuantisedMatrix {
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  const weight = take(rows * blocksPerRow * 4 * bits)
  const scales = take(rows * blocksPerRow * 4)
  return {
    rows,
    columns,
    bits,
    weight,
    scales: new Float32Array(scales.buffer, scales.byteOffset, rows * blocksPerRow),
    ...(bits === 4 ? { zeroPoints: take(rows * Math.ceil(blocksPerRow / 2)) } : {}),
  }
}

/** Quantises rows `firstRow … firstRow + values.length / columns - 1`, so that no caller needs the whole matrix in float32. */
export function quantiseRows(matrix: QuantisedMatrix, firstRow: number, values: Float32Array): void {
  const { columns, zeroPoints } = matrix
  const rows = values.length / columns
  if (!Number.isInteger(rows) || firstRow + rows > matrix.rows) {
    throw new RangeError(`${values.length} numbers from row ${firstRow} on do not fit in [${matrix.rows}, ${columns}]`)
  }
  const blocksPerRow = Math.ceil(columns / QUANTISED_BLOCK)
  const padding = blocksPerRow * QUANTISED_BLOCK - columns
  const whole = padding === 0 ? values : paddedRows(values, rows, columns, columns + padding)
  if (zeroPoints === undefined) {
    quantise8(whole, matrix, firstRow * blocksPerRow)
    for (let row = firstRow + 1; padding > 0 && row <= firstRow + rows; row++) {
      const end = row * (columns + padding)
      matrix.weight.fill(128, end - padding, end)
    }
  } else {
    quantise4(whole, matrix, zeroPoints, firstRow, blocksPerRow)
  }
}

/** Zeros change no block's range. */
function paddedRows(values: Float32Array, rows: number, columns: number, stride: number): Float32Array {
  const padded = new Float32Array(rows * stride)
  for (let row = 0; row < rows; row++) {
    padded.set(values.subarray(row * columns, (row + 1) * columns), row * stride)
  }
  return padded
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

const MAGNITUDE = 0x7fff_ffff
const INFINITE = 0x7f80_0000
const largestBits = new Int32Array(1)
const largestValue = new Float32Array(largestBits.buffer)

/** Codes 1 … 255 around 128, of whole blocks from block `at` on. Loops over words: these are all the numbers of a model. */
function quantise8(values: Float32Array, { weight, scales }: QuantisedMatrix, at: number): void {
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length)
  const words = new Uint32Array(weight.buffer, weight.byteOffset + at * QUANTISED_BLOCK, values.length / 4)
  const { length } = values
  for (let start = 0; start < length; start += QUANTISED_BLOCK) {
    const end = start + QUANTISED_BLOCK
    // Magnitudes are in the order of their bits.
    let largest = 0
    for (let i = start; i < end; i += 4) {
      largest = Math.max(
        largest,
        bits[i]! & MAGNITUDE,
        bits[i + 1]! & MAGNITUDE,
        bits[i + 2]! & MAGNITUDE,
        bits[i + 3]! & MAGNITUDE,
      )
    }
    largestBits[0] = largest
    const scale = largest > INFINITE ? Number.NaN : Math.fround(largestValue[0]! / 127)
    scales[at + (start >> 5)] = scale
    // Of a block of zeros, or of numbers too small for a float32 scale, nothing remains.
    const inverse = scale === 0 ? 0 : 1 / scale
    for (let i = start; i < end; i += 4) {
      // Positive, so that truncation rounds to the nearest.
      const a = (values[i]! * inverse + 128.5) | 0
      const b = (values[i + 1]! * inverse + 128.5) | 0
      const c = (values[i + 2]! * inverse + 128.5) | 0
      const d = (values[i + 3]! * inverse + 128.5) | 0
      words[i >> 2] = (a & 0xff) | ((b & 0xff) << 8) | ((c & 0xff) << 16) | (d << 24)
    }
  }
}

/**
 * Parts of the block's range that are tried as int4's: a narrower one has finer steps and cuts its ends off. Relative error (RMS)
 * of normal weights: 0.0789 with the whole range, 0.0774 with these three, 0.0772 with 25 choices of either end; 0.0805 with the
 * best of three scales around a fixed zero point. MatMulNBits is as fast with zero points as without.
 */
const RANGES = [1, 0.95, 0.88] as const

/** Codes 0 … 15 by the smallest squared error over the ranges; of whole blocks. */
function quantise4(
  values: Float32Array,
  { weight, scales }: QuantisedMatrix,
  zeroPoints: Uint8Array,
  firstRow: number,
  blocksPerRow: number,
): void {
  const zerosPerRow = Math.ceil(blocksPerRow / 2)
  const count = values.length / QUANTISED_BLOCK
  for (let i = 0; i < count; i++) {
    const block = i % blocksPerRow
    const at = firstRow * blocksPerRow + i
    const zero = quantiseBlock4(values, i * QUANTISED_BLOCK, weight, (at * QUANTISED_BLOCK) / 2, scales, at)
    const byte = (firstRow + (i - block) / blocksPerRow) * zerosPerRow + (block >> 1)
    zeroPoints[byte] = block % 2 === 0 ? zero : zeroPoints[byte]! | (zero << 4)
  }
}

/** Returns the zero point. */
function quantiseBlock4(
  values: Float32Array,
  start: number,
  packed: Uint8Array,
  at: number,
  scales: Float32Array,
  scaleAt: number,
): number {
  const end = start + QUANTISED_BLOCK
  let low = 0
  let high = 0
  for (let i = start; i < end; i++) {
    const value = values[i]!
    low = Math.min(low, value)
    high = Math.max(high, value)
  }
  const span = high - low
  // As for int8; a block with a number that is none, or infinite, is lost.
  if (Math.fround(span / 15) === 0 || !(span < Number.POSITIVE_INFINITY)) {
    const zero = span < Number.POSITIVE_INFINITY ? 8 : 0
    packed.fill(zero | (zero << 4), at, at + QUANTISED_BLOCK / 2)
    scales[scaleAt] = 0
    return zero
  }
  const zero = Math.round((-15 * low) / span) | 0
  const inverse0 = 15 / (RANGES[0] * span)
  const inverse1 = 15 / (RANGES[1] * span)
  const inverse2 = 15 / (RANGES[2] * span)
  // With codes fixed, the scale of least squares is Σwq / Σq², and it removes (Σwq)² / Σq² of the squared error.
  let [wq0, wq1, wq2, qq0, qq1, qq2] = [0, 0, 0, 0, 0, 0]
  for (let i = start; i < end; i++) {
    const value = values[i]!
    const code0 = nearest4(value * inverse0, zero) - zero
    const code1 = nearest4(value * inverse1, zero) - zero
    const code2 = nearest4(value * inverse2, zero) - zero
    wq0 += value * code0
    wq1 += value * code1
    wq2 += value * code2
    qq0 += code0 * code0
    qq1 += code1 * code1
    qq2 += code2 * code2
  }
  const gain0 = (wq0 * wq0) / qq0
  const gain1 = (wq1 * wq1) / qq1
  const gain2 = (wq2 * wq2) / qq2
  let inverse = inverse0
  let scale = wq0 / qq0
  if (gain1 > gain0) {
    inverse = inverse1
    scale = wq1 / qq1
  }
  if (gain2 > Math.max(gain0, gain1)) {
    inverse = inverse2
    scale = wq2 / qq2
  }
  scales[scaleAt] = scale
  for (let i = start; i < end; i += 2) {
    const pair = nearest4(values[i]! * inverse, zero) | (nearest4(values[i + 1]! * inverse, zero) << 4)
    packed[at++] = pair
  }
  return zero
}

/** A number in units of the scale, as code 0 … 15. */
function nearest4(value: number, zero: number): number {
  return Math.max(0, Math.min(15, (value + zero + 0.5) | 0))
}
