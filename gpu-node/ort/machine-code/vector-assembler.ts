/**
 * Code over vectors of float32 or int32, however wide they are: the instructions that AVX2 and AVX-512 share have the same opcodes
 * and differ in their prefix alone. What only one of them has, the other's class makes of several.
 */

import { Assembler, type Memory } from './assembler.ts'

/** Opcode maps `0F` = 1, `0F38` = 2, `0F3A` = 3; mandatory prefixes none = 0, `66` = 1, `F3` = 2, `F2` = 3. */
export interface VectorOpcode {
  map: 1 | 2 | 3
  prefix: 0 | 1 | 2 | 3
  opcode: number
}

const OPCODES = {
  load: { map: 1, prefix: 0, opcode: 0x10 },
  store: { map: 1, prefix: 0, opcode: 0x11 },
  storeLowest: { map: 1, prefix: 2, opcode: 0x11 },
  and: { map: 1, prefix: 0, opcode: 0x54 },
  multiply: { map: 1, prefix: 0, opcode: 0x59 },
  squareRoot: { map: 1, prefix: 0, opcode: 0x51 },
  divide: { map: 1, prefix: 0, opcode: 0x5e },
  minimum: { map: 1, prefix: 0, opcode: 0x5d },
  maximum: { map: 1, prefix: 0, opcode: 0x5f },
  add: { map: 1, prefix: 0, opcode: 0x58 },
  subtract: { map: 1, prefix: 0, opcode: 0x5c },
  halvesToFloats: { map: 2, prefix: 1, opcode: 0x13 },
  multiplyThenAdd: { map: 2, prefix: 1, opcode: 0xa8 },
  fusedMultiplyAdd: { map: 2, prefix: 1, opcode: 0xb8 },
  fusedMultiplySubtract: { map: 2, prefix: 1, opcode: 0xbc },
  round: { map: 3, prefix: 1, opcode: 0x08 },
  floatsToHalves: { map: 3, prefix: 1, opcode: 0x1d },
  intToFloat: { map: 1, prefix: 0, opcode: 0x5b },
  floatToInt: { map: 1, prefix: 1, opcode: 0x5b },
  xor: { map: 1, prefix: 1, opcode: 0xef },
  addInt: { map: 1, prefix: 1, opcode: 0xfe },
  subtractInt: { map: 1, prefix: 1, opcode: 0xfa },
  shiftLeftInt: { map: 1, prefix: 1, opcode: 0x72 },
  broadcast: { map: 2, prefix: 1, opcode: 0x58 },
  widenBytes: { map: 2, prefix: 1, opcode: 0x21 },
  permuteInLane: { map: 3, prefix: 1, opcode: 0x04 },
} as const satisfies Record<string, VectorOpcode>

export type Operand = number | Memory

export abstract class VectorAssembler extends Assembler {
  /** 32-bit numbers in a vector. */
  abstract readonly lanes: 8 | 16
  /** Registers 0 … vectors - 1 are the writer's, but the last from `holdDots` on; those above, if any, are this class's own. */
  abstract readonly vectors: number
  /** Of a number that `storeX` stores. */
  abstract readonly xBytes: 1 | 2
  /** What `scaleByPower` takes: e^x is clamped to x from `least` to `most`; without `most` large x become infinity. */
  abstract readonly exponents: { least: number; most?: number }

  zeroVector(to: number): void {
    this.encode(OPCODES.xor, to, to, to)
  }

  loadVector(to: number, from: Memory): void {
    this.encode(OPCODES.load, to, 0, from)
  }

  storeVector(to: Memory, from: number): void {
    this.encode(OPCODES.store, from, 0, to)
  }

  /** 32 bits, of memory or the lowest lane, into all lanes. */
  broadcastVector(to: number, from: Operand): void {
    this.encode(OPCODES.broadcast, to, 0, from)
  }

  /** The low 32 bits of a general register into all lanes. */
  abstract broadcastRegister(to: number, from: number): void

  andVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.and, to, a, b)
  }

  minimumVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.minimum, to, a, b)
  }

  maximumVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.maximum, to, a, b)
  }

  addVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.add, to, a, b)
  }

  subtractVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.subtract, to, a, b)
  }

  multiplyVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.multiply, to, a, b)
  }

  divideVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.divide, to, a, b)
  }

  squareRootVector(to: number, from: Operand): void {
    this.encode(OPCODES.squareRoot, to, 0, from)
  }

  /** To the nearest whole number, ties to even, as float. */
  roundVector(to: number, from: number): void {
    this.encode(OPCODES.round, to, 0, from)
    this.emit(0)
  }

  /** `a · 2^b` for whole b within `exponents`. */
  abstract scaleByPower(to: number, a: number, b: number): void

  /** `sum += a·b`. */
  multiplyAddVector(sum: number, a: number, b: Operand): void {
    this.encode(OPCODES.fusedMultiplyAdd, sum, a, b)
  }

  /** `sum -= a·b`. */
  multiplySubtractVector(sum: number, a: number, b: Operand): void {
    this.encode(OPCODES.fusedMultiplySubtract, sum, a, b)
  }

  /** `value = value·factor + b`. */
  multiplyThenAddVector(value: number, factor: number, b: Operand): void {
    this.encode(OPCODES.multiplyThenAdd, value, factor, b)
  }

  /** `sum += a · (the one float at b)`. */
  abstract multiplyAddBroadcast(sum: number, a: number, b: Memory): void

  /** `value = value·factor + (the one float at b)`. */
  abstract multiplyThenAddBroadcast(value: number, factor: number, b: Memory): void

  addIntVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.addInt, to, a, b)
  }

  subtractIntVector(to: number, a: number, b: Operand): void {
    this.encode(OPCODES.subtractInt, to, a, b)
  }

  shiftLeftVector(to: number, from: number, bits: number): void {
    // The opcode's extension 6 stands where a register would, the target where the second operand would.
    this.encode(OPCODES.shiftLeftInt, 6, to, from)
    this.emit(bits)
  }

  intToFloat(to: number, from: Operand): void {
    this.encode(OPCODES.intToFloat, to, 0, from)
  }

  /** To the nearest, ties to even. */
  floatToInt(to: number, from: Operand): void {
    this.encode(OPCODES.floatToInt, to, 0, from)
  }

  /** Signed bytes, one a lane, to int32. */
  widenBytes(to: number, from: Memory): void {
    this.encode(OPCODES.widenBytes, to, 0, from)
  }

  /** Before the first of the functions below. */
  abstract holdDots(): void

  /** The int32 of all lanes, -127 … 127, as the x of dots: `xBytes` a number, in groups of four. */
  abstract storeX(to: Memory, from: number): void

  /** Groups of four codes around 128, one a lane, into register `to`, and the next where there are eight lanes. */
  abstract loadCodes(to: number, from: Memory): void

  /** In each lane `sum += Σ code[i]·x[i]`, int32, over the group of four at x. */
  abstract dotCodes(sums: readonly number[], codes: readonly number[], x: Memory): void

  /** float16, one a lane. */
  loadHalves(to: number, from: Memory): void {
    this.encode(OPCODES.halvesToFloats, to, 0, from)
  }

  /** As float16, to the nearest. */
  storeHalves(to: Memory, from: number): void {
    this.encode(OPCODES.floatsToHalves, from, 0, to)
    this.emit(0)
  }

  /** Lane i gets lane `i ^ distance`; distance: a power of two below `lanes`. */
  exchangeLanes(to: number, from: number, distance: number): void {
    if (distance > 2) {
      this.exchangeFarLanes(to, from, distance)
      return
    }
    this.encode(OPCODES.permuteInLane, to, 0, from)
    this.emit(distance === 2 ? 0x4e : 0xb1)
  }

  /** The lowest float of a vector, of the registers 0 … 15. */
  storeFloat(to: Memory, from: number): void {
    this.vex(OPCODES.storeLowest, from, 0, to)
  }

  /** Before code that may use SSE: avoids its transition penalty. */
  zeroUpper(): void {
    this.emit(0xc5, 0xf8, 0x77)
  }

  protected abstract exchangeFarLanes(to: number, from: number, distance: number): void

  /** An instruction over whole vectors: target (or what is stored), second operand (0: none), last operand. */
  protected abstract encode(opcode: VectorOpcode, register: number, second: number, operand: Operand): void

  /** Three-byte VEX prefix (SDM vol. 2, 2.3.5): register bits and vvvv are inverted; `wide`: W, where the opcode wants it. */
  protected vex(
    { map, prefix, opcode }: VectorOpcode,
    register: number,
    second: number,
    operand: Operand,
    { bits = 256, wide = false }: { bits?: 128 | 256; wide?: boolean } = {},
  ): void {
    const { base, index } = typeof operand === 'number' ? { base: operand, index: undefined } : operand
    const high = (number: number) => (~number >> 3) & 1
    this.emit(0xc4, (high(register) << 7) | (high(index ?? 0) << 6) | (high(base) << 5) | map)
    this.emit((wide ? 0x80 : 0) | ((~second & 15) << 3) | (bits === 256 ? 4 : 0) | prefix, opcode)
    this.operands(register, operand)
  }
}
