/** AVX-512 with EVEX encoding (Intel SDM vol. 2, 2.7), always 512-bit and unmasked: sixteen lanes, 32 registers. */

import type { Memory } from './assembler.ts'
import { type Operand, VectorAssembler, type VectorOpcode } from './vector-assembler.ts'

const EVEX = {
  scaleByPower: { map: 2, prefix: 1, opcode: 0x2c },
  multiplyThenAdd: { map: 2, prefix: 1, opcode: 0xa8 },
  fusedMultiplyAdd: { map: 2, prefix: 1, opcode: 0xb8 },
  dotBytes: { map: 2, prefix: 1, opcode: 0x50 },
  broadcastRegister: { map: 2, prefix: 1, opcode: 0x7c },
  narrowToBytes: { map: 2, prefix: 2, opcode: 0x21 },
  shuffleLanes: { map: 3, prefix: 1, opcode: 0x23 },
} as const satisfies Record<string, VectorOpcode>

export class Avx512Assembler extends VectorAssembler {
  readonly lanes = 16
  readonly vectors = 32
  readonly xBytes = 1
  /** e^-100 is nothing beside 1. */
  readonly exponents = { least: -100 }

  broadcastRegister(to: number, from: number): void {
    this.encode(EVEX.broadcastRegister, to, 0, from)
  }

  scaleByPower(to: number, a: number, b: number): void {
    this.encode(EVEX.scaleByPower, to, a, b)
  }

  multiplyAddBroadcast(sum: number, a: number, b: Memory): void {
    this.encode(EVEX.fusedMultiplyAdd, sum, a, b, true)
  }

  multiplyThenAddBroadcast(value: number, factor: number, b: Memory): void {
    this.encode(EVEX.multiplyThenAdd, value, factor, b, true)
  }

  holdDots(): void {
    // VNNI needs no constants.
  }

  storeX(to: Memory, from: number): void {
    this.encode(EVEX.narrowToBytes, from, 0, to)
  }

  loadCodes(to: number, from: Memory): void {
    this.loadVector(to, from)
  }

  dotCodes(sums: readonly number[], codes: readonly number[], x: Memory): void {
    for (const [i, sum] of sums.entries()) {
      this.encode(EVEX.dotBytes, sum, codes[i]!, x, true)
    }
  }

  protected exchangeFarLanes(to: number, from: number, distance: number): void {
    this.encode(EVEX.shuffleLanes, to, from, from)
    this.emit(distance === 8 ? 0x4e : 0xb1)
  }

  /**
   * P0: inverted high bits and map; P1: inverted second operand and prefix; P2: length, broadcast, inverted high bit. `spread`: the
   * last operand is one number for all lanes.
   */
  protected encode(
    { map, prefix, opcode }: VectorOpcode,
    register: number,
    second: number,
    operand: Operand,
    spread = false,
  ): void {
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
