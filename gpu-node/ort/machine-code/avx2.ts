/** AVX2 with FMA3 and F16C (Intel SDM vol. 2), VEX encoding, 256-bit: eight lanes, sixteen registers. */

import type { Memory } from './assembler.ts'
import { type Operand, VectorAssembler, type VectorOpcode } from './vector-assembler.ts'

const VEX = {
  toLowest: { map: 1, prefix: 1, opcode: 0x6e },
  storeLow: { map: 1, prefix: 0, opcode: 0x11 },
  packWords: { map: 1, prefix: 1, opcode: 0x6b },
  shuffleLowWords: { map: 1, prefix: 3, opcode: 0x70 },
  multiplyPairs: { map: 1, prefix: 1, opcode: 0xf5 },
  andInt: { map: 1, prefix: 1, opcode: 0xdb },
  equalInt: { map: 1, prefix: 1, opcode: 0x76 },
  shiftInt: { map: 1, prefix: 1, opcode: 0x72 },
  shiftWords: { map: 1, prefix: 1, opcode: 0x71 },
  exchangeHalves: { map: 3, prefix: 1, opcode: 0x06 },
  permuteQuads: { map: 3, prefix: 1, opcode: 0x00 },
} as const satisfies Record<string, VectorOpcode>

/** Registers that instructions made of several take for themselves. */
const [SCRATCH, OTHER] = [15, 14] as const
/** Held for dots: 255 in each int16. */
const EVEN_BYTES = 13
const FLOAT_BIAS = 127
const MANTISSA_BITS = 23

export class Avx2Assembler extends VectorAssembler {
  readonly lanes = 8
  readonly vectors = OTHER
  readonly xBytes = 2
  /** 2^b is made of its bits alone, so it must be a normal number. */
  readonly exponents = { least: -87, most: 88 }

  broadcastRegister(to: number, from: number): void {
    this.vex(VEX.toLowest, SCRATCH, 0, from, { bits: 128 })
    this.broadcastVector(to, SCRATCH)
  }

  scaleByPower(to: number, a: number, b: number): void {
    this.floatToInt(SCRATCH, b)
    // 127 in each lane: all bits, then the upper 25 gone
    this.vex(VEX.equalInt, OTHER, OTHER, OTHER)
    this.vex(VEX.shiftInt, 2, OTHER, OTHER)
    this.emit(32 - Math.log2(FLOAT_BIAS + 1))
    this.addIntVector(SCRATCH, SCRATCH, OTHER)
    this.shiftLeftVector(SCRATCH, SCRATCH, MANTISSA_BITS)
    this.multiplyVector(to, a, SCRATCH)
  }

  multiplyAddBroadcast(sum: number, a: number, b: Memory): void {
    this.broadcastVector(SCRATCH, b)
    this.multiplyAddVector(sum, a, SCRATCH)
  }

  multiplyThenAddBroadcast(value: number, factor: number, b: Memory): void {
    this.broadcastVector(SCRATCH, b)
    this.multiplyThenAddVector(value, factor, SCRATCH)
  }

  holdDots(): void {
    this.vex(VEX.equalInt, EVEN_BYTES, EVEN_BYTES, EVEN_BYTES)
    this.vex(VEX.shiftWords, 2, EVEN_BYTES, EVEN_BYTES)
    this.emit(8)
  }

  /** As int16, of each group the first and the third, then the second and the fourth: as `loadCodes` parts the codes. */
  storeX(to: Memory, from: number): void {
    this.vex(VEX.packWords, SCRATCH, from, from)
    this.vex(VEX.shuffleLowWords, SCRATCH, 0, SCRATCH)
    this.emit(0b11_01_10_00)
    this.vex(VEX.permuteQuads, SCRATCH, 0, SCRATCH, { wide: true })
    this.emit(0b10_00)
    this.vex(VEX.storeLow, SCRATCH, 0, to, { bits: 128 })
  }

  /** Two vectors of int16: each lane's first and third code, and its second and fourth. */
  loadCodes(to: number, from: Memory): void {
    this.loadVector(to, from)
    this.vex(VEX.shiftWords, 2, to + 1, to)
    this.emit(8)
    this.vex(VEX.andInt, to, to, EVEN_BYTES)
  }

  /** In int16, as two products of bytes do not fit one: 1.4 cycles for 32 products were seen, 1.6 by bytes and their signs. */
  dotCodes(sums: readonly number[], codes: readonly number[], x: Memory): void {
    for (const pair of [0, 1]) {
      this.broadcastVector(OTHER, { ...x, offset: x.offset + 4 * pair })
      for (const [i, sum] of sums.entries()) {
        this.vex(VEX.multiplyPairs, SCRATCH, OTHER, codes[i]! + pair)
        this.addIntVector(sum, sum, SCRATCH)
      }
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
