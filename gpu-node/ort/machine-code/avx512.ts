/** AVX-512 with EVEX encoding (Intel SDM vol. 2, 2.7), always 512-bit and unmasked: what the int8 product needs. */

import { Assembler, type Memory } from './assembler.ts'

/** Opcode maps `0F` = 1, `0F38` = 2, `0F3A` = 3; mandatory prefixes none = 0, `66` = 1, `F3` = 2. */
interface EvexOpcode {
  map: 1 | 2 | 3
  prefix: 0 | 1 | 2
  opcode: number
}

const EVEX = {
  load: { map: 1, prefix: 0, opcode: 0x10 },
  store: { map: 1, prefix: 0, opcode: 0x11 },
  and: { map: 1, prefix: 0, opcode: 0x54 },
  multiply: { map: 1, prefix: 0, opcode: 0x59 },
  squareRoot: { map: 1, prefix: 0, opcode: 0x51 },
  divide: { map: 1, prefix: 0, opcode: 0x5e },
  maximum: { map: 1, prefix: 0, opcode: 0x5f },
  add: { map: 1, prefix: 0, opcode: 0x58 },
  subtract: { map: 1, prefix: 0, opcode: 0x5c },
  halvesToFloats: { map: 2, prefix: 1, opcode: 0x13 },
  scaleByPower: { map: 2, prefix: 1, opcode: 0x2c },
  multiplyThenAdd: { map: 2, prefix: 1, opcode: 0xa8 },
  fusedMultiplySubtract: { map: 2, prefix: 1, opcode: 0xbc },
  roundTo: { map: 3, prefix: 1, opcode: 0x08 },
  floatsToHalves: { map: 3, prefix: 1, opcode: 0x1d },
  intToFloat: { map: 1, prefix: 0, opcode: 0x5b },
  floatToInt: { map: 1, prefix: 1, opcode: 0x5b },
  xor: { map: 1, prefix: 1, opcode: 0xef },
  addInt: { map: 1, prefix: 1, opcode: 0xfe },
  subtractInt: { map: 1, prefix: 1, opcode: 0xfa },
  shiftLeftInt: { map: 1, prefix: 1, opcode: 0x72 },
  dotBytes: { map: 2, prefix: 1, opcode: 0x50 },
  broadcast: { map: 2, prefix: 1, opcode: 0x58 },
  broadcastRegister: { map: 2, prefix: 1, opcode: 0x7c },
  fusedMultiplyAdd: { map: 2, prefix: 1, opcode: 0xb8 },
  narrowToBytes: { map: 2, prefix: 2, opcode: 0x21 },
  permuteInLane: { map: 3, prefix: 1, opcode: 0x04 },
  shuffleLanes: { map: 3, prefix: 1, opcode: 0x23 },
} as const satisfies Record<string, EvexOpcode>

type Operand = number | Memory

/** Vector registers are 0 … 31. */
export class Avx512Assembler extends Assembler {
  zeroWide(to: number): void {
    this.#wide(EVEX.xor, to, to, to)
  }

  loadWide(to: number, from: Memory): void {
    this.#wide(EVEX.load, to, 0, from)
  }

  storeWide(to: Memory, from: number): void {
    this.#wide(EVEX.store, from, 0, to)
  }

  /** 32 bits into all sixteen lanes. */
  broadcastWide(to: number, from: Memory): void {
    this.#wide(EVEX.broadcast, to, 0, from)
  }

  /** The low 32 bits of a general register into all lanes. */
  broadcastRegister(to: number, from: number): void {
    this.#wide(EVEX.broadcastRegister, to, 0, from)
  }

  andWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.and, to, a, b)
  }

  maximumWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.maximum, to, a, b)
  }

  multiplyWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.multiply, to, a, b)
  }

  divideWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.divide, to, a, b)
  }

  squareRootWide(to: number, from: Operand): void {
    this.#wide(EVEX.squareRoot, to, 0, from)
  }

  addIntWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.addInt, to, a, b)
  }

  subtractIntWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.subtractInt, to, a, b)
  }

  shiftLeftWide(to: number, from: number, bits: number): void {
    // The opcode's extension 6 stands where a register would, the target where the second operand would.
    this.#wide(EVEX.shiftLeftInt, 6, to, from)
    this.emit(bits)
  }

  intToFloatWide(to: number, from: Operand): void {
    this.#wide(EVEX.intToFloat, to, 0, from)
  }

  /** To the nearest, ties to even. */
  floatToIntWide(to: number, from: Operand): void {
    this.#wide(EVEX.floatToInt, to, 0, from)
  }

  /** Sixteen int32 as signed bytes, saturated. */
  narrowToBytes(to: Memory, from: number): void {
    this.#wide(EVEX.narrowToBytes, from, 0, to)
  }

  addWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.add, to, a, b)
  }

  subtractWide(to: number, a: number, b: Operand): void {
    this.#wide(EVEX.subtract, to, a, b)
  }

  /** Sixteen float16. */
  loadHalves(to: number, from: Memory): void {
    this.#wide(EVEX.halvesToFloats, to, 0, from)
  }

  /** As float16, to the nearest. */
  storeHalves(to: Memory, from: number): void {
    this.#wide(EVEX.floatsToHalves, from, 0, to)
    this.emit(0)
  }

  /** To the nearest whole number, as float. */
  roundWide(to: number, from: number): void {
    this.#wide(EVEX.roundTo, to, 0, from)
    this.emit(0)
  }

  /** `a · 2^⌊b⌋`. */
  scaleByPower(to: number, a: number, b: number): void {
    this.#wide(EVEX.scaleByPower, to, a, b)
  }

  /** `sum += a·b`. */
  multiplyAddWide(sum: number, a: number, b: Operand): void {
    this.#wide(EVEX.fusedMultiplyAdd, sum, a, b)
  }

  /** `sum -= a·b`. */
  multiplySubtractWide(sum: number, a: number, b: Operand): void {
    this.#wide(EVEX.fusedMultiplySubtract, sum, a, b)
  }

  /** `value = value·factor + b`. */
  multiplyThenAdd(value: number, factor: number, b: Operand): void {
    this.#wide(EVEX.multiplyThenAdd, value, factor, b)
  }

  /** `value = value·factor + (the one float at b)`. */
  multiplyThenAddBroadcast(value: number, factor: number, b: Memory): void {
    this.#wide(EVEX.multiplyThenAdd, value, factor, b, true)
  }

  /** `sum += a · (the one float at b)`. */
  multiplyAddBroadcast(sum: number, a: number, b: Memory): void {
    this.#wide(EVEX.fusedMultiplyAdd, sum, a, b, true)
  }

  /** In each lane `sum += Σ a[i]·b[i]` over four bytes; a is unsigned, b the one group of four signed bytes there. */
  dotBytesBroadcast(sum: number, a: number, b: Memory): void {
    this.#wide(EVEX.dotBytes, sum, a, b, true)
  }

  /** Within each 128 bits, lane i gets lane (order >> 2i) & 3. */
  permuteInLane(to: number, from: number, order: number): void {
    this.#wide(EVEX.permuteInLane, to, 0, from)
    this.emit(order)
  }

  /** Of 128-bit lanes, two from a, then two from b. */
  shuffleLanes(to: number, a: number, b: number, order: number): void {
    this.#wide(EVEX.shuffleLanes, to, a, b)
    this.emit(order)
  }

  /** P0: inverted high bits and map; P1: inverted second operand and prefix; P2: length, broadcast, inverted high bit. */
  #wide({ map, prefix, opcode }: EvexOpcode, register: number, second: number, operand: Operand, spread = false): void {
    const inverted = (number: number, bit: number): number => (~number >> bit) & 1
    const memory = typeof operand === 'number' ? undefined : operand
    const x = memory === undefined ? inverted(operand as number, 4) : inverted(memory.index ?? 0, 3)
    const b = inverted(memory === undefined ? (operand as number) : memory.base, 3)
    const p0 = (inverted(register, 3) << 7) | (x << 6) | (b << 5) | (inverted(register, 4) << 4) | map
    const p1 = ((~second & 15) << 3) | 4 | prefix
    const p2 = 0x40 | (spread ? 0x10 : 0) | (inverted(second, 4) << 3)
    this.emit(0x62, p0, p1, p2, opcode)
    // Short displacements are scaled by the operand's size in EVEX; long ones are not.
    this.operands(register, operand, true)
  }
}
