/** Small pieces of vector code that several kernels share. */

import type { Avx512Assembler } from './avx512.ts'

/** Combines all sixteen lanes of a vector into each of them. */
export function acrossLanes(
  code: Avx512Assembler,
  vector: number,
  temporary: number,
  combine: (to: number, a: number, b: number) => void,
): void {
  for (const order of [0x4e, 0xb1]) {
    code.shuffleLanes(temporary, vector, vector, order)
    combine(vector, vector, temporary)
  }
  for (const order of [0x4e, 0xb1]) {
    code.permuteInLane(temporary, vector, order)
    combine(vector, vector, temporary)
  }
}

const LOG2_E = Math.LOG2E
/** ln 2 in two parts: the first has few bits, so that its products with small whole numbers are exact. */
const LN2_HIGH = 0.693359375
const LN2_LOW = Math.LN2 - LN2_HIGH
/** e^x below this is nothing beside a softmax's largest term, 1. */
const SMALLEST_EXPONENT = -100
/** e^x on |x| ≤ ln 2 / 2, Taylor's: the next term is below 6e-9. */
const COEFFICIENTS = [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1]

/** Offset of the number 1 in the table. */
export const ONE_IN_TABLE = (4 + COEFFICIENTS.length - 1) * 4

/** Data for `writeExponential`; `label` names it. */
export function writeExponentialTable(code: Avx512Assembler, label: string): void {
  code.align(16)
  code.label(label)
  for (const value of [SMALLEST_EXPONENT, LOG2_E, LN2_HIGH, LN2_LOW, ...COEFFICIENTS]) {
    code.float(value)
  }
}

/** `x = e^x` for x ≤ 88, relative error below 3e-7; `table`: general register with the table's address; two temporaries. */
export function writeExponential(
  code: Avx512Assembler,
  x: number,
  table: number,
  [power, sum]: readonly [number, number],
): void {
  const entry = (index: number) => ({ base: table, offset: index * 4 })
  code.broadcastWide(power, entry(0))
  code.maximumWide(x, x, power)
  code.broadcastWide(power, entry(1))
  code.multiplyWide(power, power, x)
  code.roundWide(power, power)
  for (const part of [2, 3]) {
    code.broadcastWide(sum, entry(part))
    code.multiplySubtractWide(x, power, sum)
  }
  code.broadcastWide(sum, entry(4))
  for (let term = 1; term < COEFFICIENTS.length; term++) {
    code.multiplyThenAddBroadcast(sum, x, entry(4 + term))
  }
  code.scaleByPower(x, sum, power)
}
