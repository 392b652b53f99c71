/**
 * Emits the few x86-64 instructions that the kernels need (Intel SDM vol. 2): 64-bit integer code, labels and data; vectors are
 * added by `vector-assembler.ts`. Knows encodings only, not what the code computes.
 */

import { RingletError } from '../../../shared/errors.ts'

/** A general register's number in instruction encodings. */
export const REG = {
  rax: 0,
  rcx: 1,
  rdx: 2,
  rbx: 3,
  rsp: 4,
  rbp: 5,
  rsi: 6,
  rdi: 7,
  r8: 8,
  r9: 9,
  r10: 10,
  r11: 11,
  r12: 12,
  r13: 13,
  r14: 14,
  r15: 15,
} as const

/** `[base + index·scale + offset]`. */
export interface Memory {
  base: number
  offset: number
  index?: number
  scale?: 1 | 2 | 4 | 8
}

export function at(base: number, offset = 0): Memory {
  return { base, offset }
}

export class Assembler {
  readonly #bytes: number[] = []
  readonly #labels = new Map<string, number>()
  /** Places of 32-bit distances, relative to the byte behind them. */
  readonly #references: { place: number; label: string }[] = []

  label(name: string): void {
    this.#labels.set(name, this.#bytes.length)
  }

  offsetOf(label: string): number {
    const offset = this.#labels.get(label)
    if (offset === undefined) {
      throw new RingletError('internal', `assembler: no label '${label}'`)
    }
    return offset
  }

  /** Fills up with traps. */
  align(bytes: number): void {
    while (this.#bytes.length % bytes !== 0) {
      this.#bytes.push(0xcc)
    }
  }

  float(value: number): void {
    this.int32(new Int32Array(Float32Array.of(value).buffer)[0]!)
  }

  /** 32 bits of data. */
  word(value: number): void {
    this.int32(value | 0)
  }

  /** Bytes that are filled in later. */
  space(bytes: number): void {
    this.emit(...new Uint8Array(bytes))
  }

  finish(): Uint8Array {
    const code = Uint8Array.from(this.#bytes)
    const view = new DataView(code.buffer)
    for (const { place, label } of this.#references) {
      view.setInt32(place, this.offsetOf(label) - (place + 4), true)
    }
    return code
  }

  push(register: number): void {
    this.emit(...(register > 7 ? [0x41] : []), 0x50 | (register & 7))
  }

  pop(register: number): void {
    this.emit(...(register > 7 ? [0x41] : []), 0x58 | (register & 7))
  }

  ret(): void {
    this.emit(0xc3)
  }

  move(to: number, from: number): void {
    this.#integer([0x89], from, to)
  }

  load(to: number, from: Memory): void {
    this.#integer([0x8b], to, from)
  }

  store(to: Memory, from: number): void {
    this.#integer([0x89], from, to)
  }

  address(to: number, of: Memory): void {
    this.#integer([0x8d], to, of)
  }

  /** The whole 64 bits. */
  constant(to: number, value: bigint): void {
    this.emit(0x48 | (to >> 3), 0xb8 | (to & 7))
    for (let shift = 0n; shift < 64n; shift += 8n) {
      this.emit(Number((value >> shift) & 0xffn))
    }
  }

  /** 32 bits, zero-extended. */
  smallConstant(to: number, value: number): void {
    this.emit(...(to > 7 ? [0x41] : []), 0xb8 | (to & 7))
    this.int32(value)
  }

  /** 32 bits, sign-extended. */
  storeConstant(to: Memory, value: number): void {
    this.#integer([0xc7], 0, to)
    this.int32(value)
  }

  add(to: number, from: number): void {
    this.#integer([0x01], from, to)
  }

  addConstant(to: number, value: number): void {
    this.#integer([0x81], 0, to)
    this.int32(value)
  }

  subtractConstant(from: number, value: number): void {
    this.#integer([0x81], 5, from)
    this.int32(value)
  }

  subtract(from: number, what: number): void {
    this.#integer([0x29], what, from)
  }

  /** rax = rax / by, rdx = the remainder; unsigned. */
  divide(by: number): void {
    this.smallConstant(REG.rdx, 0)
    this.#integer([0xf7], 6, by)
  }

  /** The mask is sign-extended from 32 bits. */
  andConstant(to: number, mask: number): void {
    this.#integer([0x81], 4, to)
    this.int32(mask)
  }

  multiply(to: number, by: number): void {
    this.#integer([0x0f, 0xaf], to, by)
  }

  shiftLeft(register: number, bits: number): void {
    this.#integer([0xc1], 4, register)
    this.emit(bits)
  }

  /** Of an unsigned number. */
  shiftRight(register: number, bits: number): void {
    this.#integer([0xc1], 5, register)
    this.emit(bits)
  }

  /** Sets the zero flag when the register is 0. */
  testZero(register: number): void {
    this.#integer([0x85], register, register)
  }

  compareConstant(register: number, value: number): void {
    this.#integer([0x81], 7, register)
    this.int32(value)
  }

  /** For the jumps below: of a to b, unsigned. */
  compare(a: number, b: number): void {
    this.#integer([0x39], b, a)
  }

  /** 32 bits, zero-extended. */
  loadHalf(to: number, from: Memory): void {
    this.#integer([0x8b], to, from, false)
  }

  storeHalf(to: Memory, from: number): void {
    this.#integer([0x89], from, to, false)
  }

  /** 16 bits, zero-extended. */
  loadQuarter(to: number, from: Memory): void {
    this.#integer([0x0f, 0xb7], to, from, false)
  }

  storeQuarter(to: Memory, from: number): void {
    this.emit(0x66)
    this.#integer([0x89], from, to, false)
  }

  /** Asks for a cache line in the second level; never fails, whatever the address. */
  prefetch(from: Memory): void {
    this.emit(0x40 | (((from.index ?? 0) >> 3) << 1) | (from.base >> 3), 0x0f, 0x18)
    this.operands(2, from)
  }

  call(pointer: Memory): void {
    this.#integer([0xff], 2, pointer)
  }

  jumpIfZero(label: string): void {
    this.emit(0x0f, 0x84)
    this.#reference(label)
  }

  jumpIfNotZero(label: string): void {
    this.emit(0x0f, 0x85)
    this.#reference(label)
  }

  jump(label: string): void {
    this.emit(0xe9)
    this.#reference(label)
  }

  /** A function at a label of this code. */
  callLabel(label: string): void {
    this.emit(0xe8)
    this.#reference(label)
  }

  /** After a comparison of unsigned numbers. */
  jumpIfBelow(label: string): void {
    this.emit(0x0f, 0x82)
    this.#reference(label)
  }

  jumpIfNotBelow(label: string): void {
    this.emit(0x0f, 0x83)
    this.#reference(label)
  }

  addressOfLabel(to: number, label: string): void {
    this.emit(0x48 | ((to >> 3) << 2), 0x8d, 0x05 | ((to & 7) << 3))
    this.#reference(label)
  }

  protected emit(...bytes: number[]): void {
    this.#bytes.push(...bytes)
  }

  protected int32(value: number): void {
    this.emit(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255)
  }

  #reference(label: string): void {
    this.#references.push({ place: this.#bytes.length, label })
    this.int32(0)
  }

  /** REX prefix, opcode, operands; `wide`: of 64 bits. */
  #integer(opcode: readonly number[], register: number, operand: number | Memory, wide = true): void {
    const { base, index } = typeof operand === 'number' ? { base: operand, index: undefined } : operand
    this.emit((wide ? 0x48 : 0x40) | ((register >> 3) << 2) | (((index ?? 0) >> 3) << 1) | (base >> 3), ...opcode)
    this.operands(register, operand)
  }

  /** ModRM, SIB and displacement. rsp and r12 as a base need a SIB byte; rbp and r13 always a displacement. */
  protected operands(register: number, operand: number | Memory, longDisplacements = false): void {
    const field = (register & 7) << 3
    if (typeof operand === 'number') {
      this.emit(0xc0 | field | (operand & 7))
      return
    }
    const { base, offset, index, scale = 1 } = operand
    const withSib = index !== undefined || (base & 7) === 4
    const short = !longDisplacements && offset >= -128 && offset <= 127
    const mode = offset === 0 && (base & 7) !== 5 ? 0 : short ? 0x40 : 0x80
    this.emit(mode | field | (withSib ? 4 : base & 7))
    if (withSib) {
      this.emit((Math.log2(scale) << 6) | (((index ?? 4) & 7) << 3) | (base & 7))
    }
    if (mode === 0x40) {
      this.emit(offset & 255)
    } else if (mode === 0x80) {
      this.int32(offset)
    }
  }
}
