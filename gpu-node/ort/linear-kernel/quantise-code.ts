/**
 * The first half of the int8 product: a token's x, normed where there is a norm, as int8 codes; and `A·x` of its adapter, as codes
 * too. The weights' codes are 128 too large, which each block's correction makes up for.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'
import { ROW_HEADER_WORDS } from '../lora-kernel/kernel-layout.ts'
import { RECORD } from '../lora-kernel/tiled-layout.ts'
import { at, type Memory, REG } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { acrossLanes } from '../machine-code/vector-math.ts'
import {
  ARGUMENT,
  ENTRY,
  floatBits,
  GROUP_BYTES,
  GROUP_INPUTS,
  MOST_PARTS,
  MOST_RANKS,
  REST_STEPS,
  SHAPE_WORDS,
  TILE_OUTPUTS,
  workLayout,
} from './linear-layout.ts'
import { quantiseRegisters } from './registers.ts'

const { rax, rbx, rcx, rdx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = REG
/** Held through the function: the argument, the token's working memory. */
const HELD = { argument: r12, work: r13 } as const
/**
 * Constants in vectors: all bits but the sign; the least that a largest magnitude counts as; 127; 1 / 127; the norm's factor; steps
 * of second codes in one of first codes.
 */
const [SIGN, TINY, MOST, STEP, NORM, REST] = [5, 6, 7, 8, 9, 10] as const
/** Of a tile, and of ranks. */
const TILE_ROW_BYTES = TILE_OUTPUTS * 4
/** On the stack: A·x, and one part of it alone; both with a vector more. */
const FRAME = { ranks: 0, part: MOST_RANKS * 4 + TILE_ROW_BYTES, bytes: 2 * (MOST_RANKS * 4 + TILE_ROW_BYTES) }
const PART_MASK = 'part mask'
/** A is read once a token, from memory: as far ahead as W (`tile-code.ts`). */
const AHEAD_BYTES = 2048

/** `quantise(argument, token)`. */
export function writeQuantise(code: VectorAssembler, inputs: number): void {
  const saved = [rbp, rbx, r12, r13, r14, r15]
  code.align(16)
  code.label('quantise')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, FRAME.bytes)
  code.move(HELD.argument, rdi)
  code.move(rbp, rsi)
  code.move(rax, rsi)
  code.smallConstant(rcx, workLayout(inputs, code.xBytes).bytes)
  code.multiply(rax, rcx)
  code.load(HELD.work, at(rdi, ARGUMENT.work))
  code.add(HELD.work, rax)
  code.move(rax, rsi)
  code.smallConstant(rcx, inputs * 4)
  code.multiply(rax, rcx)
  code.load(rdx, at(rdi, ARGUMENT.x))
  code.add(rdx, rax)
  writeConstants(code)
  code.load(r11, at(HELD.argument, ARGUMENT.norm))
  code.testZero(r11)
  code.jumpIfZero('quantise plain')
  writeNormFactor(code, inputs)
  writeBlocks(code, inputs, true)
  code.jump('quantise codes end')
  code.label('quantise plain')
  writeBlocks(code, inputs, false)
  code.label('quantise codes end')
  writeAdapter(code, inputs)
  code.zeroUpper()
  code.addConstant(rsp, FRAME.bytes)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
  code.align(16)
  code.label(PART_MASK)
  for (let lane = 0; lane < 2 * code.lanes; lane++) {
    code.word(lane < code.lanes ? 0xffffffff : 0)
  }
}

function writeConstant(code: VectorAssembler, vector: number, bits: number): void {
  code.smallConstant(rax, bits)
  code.broadcastRegister(vector, rax)
}

function writeConstants(code: VectorAssembler): void {
  writeConstant(code, SIGN, 0x7fffffff)
  writeConstant(code, TINY, floatBits(1e-30))
  writeConstant(code, MOST, floatBits(127))
  writeConstant(code, STEP, floatBits(1 / 127))
  writeConstant(code, REST, floatBits(REST_STEPS))
}

/** NORM = 1 / √(mean of x² + ε); rdx: x, kept. The sums are the same with eight lanes as with sixteen, bit for bit. */
function writeNormFactor(code: VectorAssembler, inputs: number): void {
  const { values, squares } = quantiseRegisters(code.lanes)
  const [low, high] = [values[0]!, values[1]!]
  const [sum, other] = [squares[0]!, squares[1]!]
  for (const square of squares) {
    code.zeroVector(square)
  }
  code.move(rsi, rdx)
  code.smallConstant(rcx, inputs / QUANTISED_BLOCK)
  code.label('norm')
  for (const [i, value] of values.entries()) {
    code.loadVector(value, at(rsi, i * code.lanes * 4))
  }
  for (const [i, value] of values.entries()) {
    code.multiplyAddVector(squares[i]!, value, value)
  }
  code.addConstant(rsi, QUANTISED_BLOCK * 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('norm')
  for (let half = squares.length / 2; half >= 1; half /= 2) {
    for (let i = 0; i < half; i++) {
      code.addVector(squares[i]!, squares[i]!, squares[i + half]!)
    }
  }
  acrossLanes(code, sum, other, (to, a, b) => code.addVector(to, a, b))
  writeConstant(code, other, floatBits(1 / inputs))
  code.load(rax, at(HELD.argument, ARGUMENT.shape))
  code.broadcastVector(low, at(rax, SHAPE_WORDS.epsilon * 8))
  code.multiplyAddVector(low, sum, other)
  code.squareRootVector(low, low)
  writeConstant(code, high, floatBits(1))
  code.divideVector(NORM, high, low)
}

/** Codes with 127 at each block's largest magnitude. rdx: x; r11: the norm's weights. */
function writeBlocks(code: VectorAssembler, inputs: number, normed: boolean): void {
  const { values, largest, step } = quantiseRegisters(code.lanes)
  const work = workLayout(inputs, code.xBytes)
  const label = `quantise ${normed ? 'normed' : 'plain'} block`
  const place = (i: number): number => i * code.lanes * 4
  code.move(r8, HELD.work)
  code.move(rsi, HELD.work)
  code.smallConstant(rcx, inputs / QUANTISED_BLOCK)
  code.label(label)
  for (const [i, value] of values.entries()) {
    code.loadVector(value, at(rdx, place(i)))
  }
  if (normed) {
    for (const value of values) {
      code.multiplyVector(value, value, NORM)
    }
    for (const [i, value] of values.entries()) {
      code.multiplyVector(value, value, at(r11, place(i)))
    }
    code.addConstant(r11, QUANTISED_BLOCK * 4)
  }
  for (const [i, value] of values.entries()) {
    code.andVector(i === 0 ? largest : step, value, SIGN)
    if (i > 0) {
      code.maximumVector(largest, largest, step)
    }
  }
  writeSteps(code, largest, step)
  code.storeFloat(at(rsi, work.scales), step)
  for (const value of values) {
    code.multiplyVector(value, value, largest)
  }
  writeBlockCodes(code, 0, work.corrections)
  writeBlockCodes(code, work.rests, work.restCorrections)
  code.addConstant(rdx, QUANTISED_BLOCK * 4)
  code.addConstant(r8, QUANTISED_BLOCK * code.xBytes)
  code.addConstant(rsi, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(label)
}

/** A block's first or second codes, and their correction. r8, rsi: as in `writeBlocks`. */
function writeBlockCodes(code: VectorAssembler, place: number, correction: number): void {
  const { values, codes } = quantiseRegisters(code.lanes)
  const [sum, other] = [codes[0]!, codes[1]!]
  for (const [i, value] of values.entries()) {
    writeCodes(code, value, codes[i]!, at(r8, place + i * code.lanes * code.xBytes))
    if (i > 0) {
      code.addIntVector(sum, sum, codes[i]!)
    }
  }
  writeCorrection(code, sum, other)
  code.storeFloat(at(rsi, correction), other)
}

/** `codes` = `values`, rounded; `values` becomes what was rounded off, in steps of the second codes. */
function writeCodes(code: VectorAssembler, values: number, codes: number, place: Memory): void {
  const { rounded } = quantiseRegisters(code.lanes)
  code.floatToInt(codes, values)
  code.storeX(place, codes)
  code.intToFloat(rounded, codes)
  code.subtractVector(values, values, rounded)
  code.multiplyVector(values, values, REST)
}

/** From magnitudes: `step` = largest / 127, and `largest` = 127 / largest. */
function writeSteps(code: VectorAssembler, largest: number, step: number): void {
  acrossLanes(code, largest, step, (to, a, b) => code.maximumVector(to, a, b))
  // A block of zeros gets a step that changes nothing.
  code.maximumVector(largest, largest, TINY)
  code.multiplyVector(step, largest, STEP)
  code.divideVector(largest, MOST, largest)
}

/** `correction` = -128 · Σ of the lanes of `sum`. */
function writeCorrection(code: VectorAssembler, sum: number, correction: number): void {
  acrossLanes(code, sum, correction, (to, a, b) => code.addIntVector(to, a, b))
  code.shiftLeftVector(sum, sum, 7)
  code.zeroVector(correction)
  code.subtractIntVector(correction, correction, sum)
}

/** The token's entries, from its adapter's record. rbp: the token. */
function writeAdapter(code: VectorAssembler, inputs: number): void {
  const work = workLayout(inputs, code.xBytes)
  code.load(rax, at(HELD.argument, ARGUMENT.rows))
  code.testZero(rax)
  code.jumpIfZero('adapter end')
  code.smallConstant(rcx, 0)
  for (let part = 0; part < MOST_PARTS; part++) {
    code.store(at(HELD.work, work.entries + part * ENTRY.bytes + ENTRY.groups), rcx)
  }
  code.load(rbx, { base: rax, offset: ROW_HEADER_WORDS * 8, index: rbp, scale: 8 })
  code.testZero(rbx)
  code.jumpIfZero('adapter end')
  code.load(rax, at(HELD.argument, ARGUMENT.shape))
  code.load(rax, at(rax, SHAPE_WORDS.adapterOffset * 8))
  code.add(rbx, rax)
  code.load(r9, at(rbx, RECORD.rankBlocks * 8))
  code.testZero(r9)
  code.jumpIfZero('adapter end')
  writeProjection(code, inputs)
  code.move(r14, HELD.work)
  code.addConstant(r14, work.loraCodes)
  for (let part = 0; part < MOST_PARTS; part++) {
    writePart(code, part, work.entries + part * ENTRY.bytes, work.loraRests)
  }
  code.label('adapter end')
}

/** A·x, sixteen ranks at a time; rbx: the record; r9: blocks of ranks. */
function writeProjection(code: VectorAssembler, inputs: number): void {
  const work = workLayout(inputs, code.xBytes)
  const groups = QUANTISED_BLOCK / GROUP_INPUTS
  const { sum, whole, rest, weights, restStep, keepsConstants } = quantiseRegisters(code.lanes).projection
  const units = [...sum.keys()]
  const place = (unit: number): number => unit * code.lanes * 4
  code.holdDots()
  writeConstant(code, restStep, floatBits(1 / REST_STEPS))
  code.load(r8, at(rbx, RECORD.a * 8))
  code.move(r10, rsp)
  code.label('project')
  for (const vector of sum) {
    code.zeroVector(vector)
  }
  code.move(rdx, HELD.work)
  code.move(rsi, HELD.work)
  code.smallConstant(rcx, inputs / QUANTISED_BLOCK)
  code.label('project block')
  for (const unit of units) {
    code.broadcastVector(whole[unit]!, at(rsi, work.corrections))
    code.broadcastVector(rest[unit]!, at(rsi, work.restCorrections))
  }
  for (let group = 0; group < groups; group++) {
    const codes = units.map((unit) => weights(group, unit))
    for (const unit of units) {
      code.loadCodes(codes[unit]!, at(r8, group * GROUP_BYTES + place(unit)))
    }
    code.prefetch(at(r8, group * GROUP_BYTES + AHEAD_BYTES))
    const x = group * GROUP_INPUTS * code.xBytes
    code.dotCodes(whole, codes, at(rdx, x))
    code.dotCodes(rest, codes, at(rdx, work.rests + x))
  }
  for (const unit of units) {
    code.intToFloat(whole[unit]!, whole[unit]!)
    code.intToFloat(rest[unit]!, rest[unit]!)
    code.multiplyAddVector(whole[unit]!, rest[unit]!, restStep)
    code.multiplyAddBroadcast(sum[unit]!, whole[unit]!, at(rsi, work.scales))
  }
  code.addConstant(r8, groups * GROUP_BYTES)
  code.addConstant(rdx, QUANTISED_BLOCK * code.xBytes)
  code.addConstant(rsi, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('project block')
  for (const unit of units) {
    code.storeVector(at(r10, FRAME.ranks + place(unit)), sum[unit]!)
  }
  code.addConstant(r10, TILE_ROW_BYTES)
  code.subtractConstant(r9, 1)
  code.jumpIfNotZero('project')
  if (!keepsConstants) {
    writeConstants(code)
  }
}

/** One part's ranks as codes of one step; r14: where codes go, moved on. */
function writePart(code: VectorAssembler, part: number, entry: number, loraRests: number): void {
  const [values, largest, step, sum, restSum, restStep] = [0, 1, 2, 3, 11, 12] as const
  const codes = quantiseRegisters(code.lanes).partCodes
  const [lanes, vectorBytes] = [code.lanes, code.lanes * 4]
  const record = (field: number) => at(rbx, (RECORD.parts + part * RECORD.partWords + field) * 8)
  const end = `part ${part} end`
  code.load(rcx, record(RECORD.partGroups))
  code.testZero(rcx)
  code.jumpIfZero(end)
  code.store(at(HELD.work, entry + ENTRY.groups), rcx)
  code.load(rax, record(RECORD.partB))
  code.store(at(HELD.work, entry + ENTRY.b), rax)
  code.store(at(HELD.work, entry + ENTRY.codes), r14)
  // rsi: the part's ranks; rdi: its copy; rcx: ranks left; r9: their vectors
  code.shiftLeft(rcx, Math.log2(GROUP_INPUTS))
  code.move(r9, rcx)
  code.addConstant(r9, lanes - 1)
  code.shiftRight(r9, Math.log2(lanes))
  code.move(r8, r9)
  code.load(rsi, record(RECORD.partRank))
  code.shiftLeft(rsi, 2)
  code.add(rsi, rsp)
  code.move(rdi, rsp)
  code.zeroVector(largest)
  code.label(`part ${part} largest`)
  // r11: lanes of this vector that are another part's
  code.smallConstant(r11, lanes)
  code.compare(rcx, r11)
  code.jumpIfNotBelow(`part ${part} whole`)
  code.move(r11, rcx)
  code.label(`part ${part} whole`)
  code.addressOfLabel(r10, PART_MASK)
  code.addConstant(r10, vectorBytes)
  code.move(rax, r11)
  code.shiftLeft(rax, 2)
  code.subtract(r10, rax)
  code.loadVector(values, at(rsi, FRAME.ranks))
  code.andVector(values, values, at(r10, 0))
  code.storeVector(at(rdi, FRAME.part), values)
  code.andVector(values, values, SIGN)
  code.maximumVector(largest, largest, values)
  code.addConstant(rsi, vectorBytes)
  code.addConstant(rdi, vectorBytes)
  code.subtract(rcx, r11)
  code.subtractConstant(r8, 1)
  code.jumpIfNotZero(`part ${part} largest`)
  writeSteps(code, largest, step)
  code.storeFloat(at(HELD.work, entry + ENTRY.scale), step)
  writeConstant(code, restStep, floatBits(1 / REST_STEPS))
  code.multiplyVector(step, step, restStep)
  code.storeFloat(at(HELD.work, entry + ENTRY.restScale), step)
  code.zeroVector(sum)
  code.zeroVector(restSum)
  code.move(rdi, rsp)
  code.label(`part ${part} codes`)
  code.multiplyVector(values, largest, at(rdi, FRAME.part))
  writeCodes(code, values, codes, at(r14, 0))
  code.addIntVector(sum, sum, codes)
  writeCodes(code, values, codes, at(r14, loraRests))
  code.addIntVector(restSum, restSum, codes)
  code.addConstant(rdi, vectorBytes)
  code.addConstant(r14, lanes * code.xBytes)
  code.subtractConstant(r9, 1)
  code.jumpIfNotZero(`part ${part} codes`)
  writeCorrection(code, sum, values)
  code.storeFloat(at(HELD.work, entry + ENTRY.correction), values)
  writeCorrection(code, restSum, values)
  code.storeFloat(at(HELD.work, entry + ENTRY.restCorrection), values)
  code.label(end)
}
