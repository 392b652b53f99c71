/** Small pieces of vector code that several kernels share. */

import type { VectorAssembler } from './vector-assembler.ts'

/** Combines all lanes of a vector into each of them. */
export function acrossLanes(
  code: VectorAssembler,
  vector: number,
  temporary: number,
  combine: (to: number, a: number, b: number) => void,
): void {
  for (let distance = code.lanes / 2; distance >= 1; distance /= 2) {
    code.exchangeLanes(temporary, vector, distance)
    combine(vector, vector, temporary)
  }
}

const LOG2_E = Math.LOG2E
/** ln 2 in two parts: the first has few bits, so that its products with small whole numbers are exact. */
const LN2_HIGH = 0.693359375
const LN2_LOW = Math.LN2 - LN2_HIGH
/** e^x on |x| ≤ ln 2 / 2, Taylor's: the next term is below 6e-9. */
const COEFFICIENTS = [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1]

const MOST_IN_TABLE = 4 + COEFFICIENTS.length
/** Offset of the number 1 in the table. */
export const ONE_IN_TABLE = (4 + COEFFICIENTS.length - 1) * 4

/** Data for `writeExponential`; `label` names it. */
export function writeExponentialTable(code: VectorAssembler, label: string): void {
  code.align(16)
  code.label(label)
  const { least, most } = code.exponents
  for (const value of [least, LOG2_E, LN2_HIGH, LN2_LOW, ...COEFFICIENTS, ...(most === undefined ? [] : [most])]) {
    code.float(value)
  }
}

/** `x = e^x`, relative error below 3e-7; beyond ±87 near 0, and very large or infinite; `table`: general register with the table's address; two temporaries. */
export function writeExponential(
  code: VectorAssembler,
  x: number,
  table: number,
  [power, sum]: readonly [number, number],
): void {
  const entry = (index: number) => ({ base: table, offset: index * 4 })
  code.broadcastVector(power, entry(0))
  code.maximumVector(x, x, power)
  if (code.exponents.most !== undefined) {
    code.broadcastVector(power, entry(MOST_IN_TABLE))
    code.minimumVector(x, x, power)
  }
  code.broadcastVector(power, entry(1))
  code.multiplyVector(power, power, x)
  code.roundVector(power, power)
  for (const part of [2, 3]) {
    code.broadcastVector(sum, entry(part))
    code.multiplySubtractVector(x, power, sum)
  }
  code.broadcastVector(sum, entry(4))
  for (let term = 1; term < COEFFICIENTS.length; term++) {
    code.multiplyThenAddBroadcast(sum, x, entry(4 + term))
  }
  code.scaleByPower(x, sum, power)
}
