/** AVX2 with FMA3 and F16C (Intel SDM vol. 2), VEX encoding, 256-bit: eight lanes, sixteen registers. */

import type { Memory } from './assembler.ts'
import { type Operand, VectorAssembler, type VectorOpcode } from './vector-assembler.ts'

const VEX = {
  toLowest: { map: 1, prefix: 1, opcode: 0x6e },
  storeLowHalf: { map: 1, prefix: 1, opcode: 0xd6 },
  packWords: { map: 1, prefix: 1, opcode: 0x6b },
  packBytes: { map: 1, prefix: 1, opcode: 0x63 },
  addPairs: { map: 1, prefix: 1, opcode: 0xf5 },
  addInt: { map: 1, prefix: 1, opcode: 0xfe },
  equalInt: { map: 1, prefix: 1, opcode: 0x76 },
  shiftInt: { map: 1, prefix: 1, opcode: 0x72 },
  shiftWords: { map: 1, prefix: 1, opcode: 0x71 },
  floatToInt: { map: 1, prefix: 1, opcode: 0x5b },
  multiply: { map: 1, prefix: 0, opcode: 0x59 },
  xor: { map: 1, prefix: 1, opcode: 0xef },
  multiplyBytes: { map: 2, prefix: 1, opcode: 0x04 },
  signBytes: { map: 2, prefix: 1, opcode: 0x08 },
  absoluteBytes: { map: 2, prefix: 1, opcode: 0x1c },
  broadcast: { map: 2, prefix: 1, opcode: 0x58 },
  fusedMultiplyAdd: { map: 2, prefix: 1, opcode: 0xb8 },
  multiplyThenAdd: { map: 2, prefix: 1, opcode: 0xa8 },
  exchangeHalves: { map: 3, prefix: 1, opcode: 0x06 },
  upperHalf: { map: 3, prefix: 1, opcode: 0x39 },
} as const satisfies Record<string, VectorOpcode>

/** Registers that instructions made of several take for themselves. */
const [SCRATCH, OTHER] = [15, 14] as const
/** Held for dots: 128 in each byte, 1 in each int16. */
const [BIAS, ONES] = [13, 12] as const
const FLOAT_BIAS = 127
const MANTISSA_BITS = 23

export class Avx2Assembler extends VectorAssembler {
  readonly lanes = 8
  readonly vectors = OTHER
  readonly vectorsBesideDots = ONES
  readonly codeVectors = 2
  /** 2^b is made of its bits alone, so it must be a normal number. */
  readonly exponents = { least: -87, most: 88 }

  broadcastRegister(to: number, from: number): void {
    this.vex(VEX.toLowest, SCRATCH, 0, from, 128)
    this.vex(VEX.broadcast, to, 0, SCRATCH)
  }

  scaleByPower(to: number, a: number, b: number): void {
    this.vex(VEX.floatToInt, SCRATCH, 0, b)
    // 127 in each lane: all bits, then the upper 25 gone
    this.vex(VEX.equalInt, OTHER, OTHER, OTHER)
    this.vex(VEX.shiftInt, 2, OTHER, OTHER)
    this.emit(32 - Math.log2(FLOAT_BIAS + 1))
    this.vex(VEX.addInt, SCRATCH, SCRATCH, OTHER)
    this.vex(VEX.shiftInt, 6, SCRATCH, SCRATCH)
    this.emit(MANTISSA_BITS)
    this.vex(VEX.multiply, to, a, SCRATCH)
  }

  multiplyAddBroadcast(sum: number, a: number, b: Memory): void {
    this.vex(VEX.broadcast, SCRATCH, 0, b)
    this.vex(VEX.fusedMultiplyAdd, sum, a, SCRATCH)
  }

  multiplyThenAddBroadcast(value: number, factor: number, b: Memory): void {
    this.vex(VEX.broadcast, SCRATCH, 0, b)
    this.vex(VEX.multiplyThenAdd, value, factor, SCRATCH)
  }

  narrowToBytes(to: Memory, from: number): void {
    this.vex(VEX.upperHalf, from, 0, SCRATCH)
    this.emit(1)
    this.vex(VEX.packWords, SCRATCH, from, SCRATCH, 128)
    this.vex(VEX.packBytes, SCRATCH, SCRATCH, SCRATCH, 128)
    this.vex(VEX.storeLowHalf, SCRATCH, 0, to, 128)
  }

  holdDots(): void {
    for (const register of [BIAS, ONES]) {
      this.vex(VEX.equalInt, register, register, register)
    }
    this.vex(VEX.absoluteBytes, BIAS, 0, BIAS)
    this.vex(VEX.shiftWords, 6, BIAS, BIAS)
    this.emit(7)
    this.vex(VEX.shiftWords, 2, ONES, ONES)
    this.emit(15)
  }

  /** As signed bytes, and behind them their magnitudes. */
  loadCodes(to: number, from: Memory): void {
    this.vex(VEX.xor, to, BIAS, from)
    this.vex(VEX.absoluteBytes, to + 1, 0, to)
  }

  startDots(sum: number): void {
    this.zeroVector(sum)
  }

  /** |code| · (x with the code's sign): two such products fit in an int16, which unsigned codes times x would not. */
  dotCodes(sums: readonly number[], codes: readonly number[], x: Memory): void {
    this.vex(VEX.broadcast, OTHER, 0, x)
    for (const [i, sum] of sums.entries()) {
      this.vex(VEX.signBytes, SCRATCH, OTHER, codes[i]!)
      this.vex(VEX.multiplyBytes, SCRATCH, codes[i]! + 1, SCRATCH)
      this.vex(VEX.addPairs, SCRATCH, SCRATCH, ONES)
      this.vex(VEX.addInt, sum, sum, SCRATCH)
    }
  }

  protected exchangeFarLanes(to: number, from: number): void {
    this.vex(VEX.exchangeHalves, to, from, from)
    this.emit(1)
  }

  protected encode(opcode: VectorOpcode, register: number, second: number, operand: Operand): void {
    this.vex(opcode, register, second, operand)
  }
}
