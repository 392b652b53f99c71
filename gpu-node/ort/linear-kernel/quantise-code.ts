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
  LORA_CODES_BYTES,
  MOST_PARTS,
  MOST_RANKS,
  REST_STEPS,
  SHAPE_WORDS,
  TILE_OUTPUTS,
  workLayout,
} from './linear-layout.ts'

const { rax, rbx, rcx, rdx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = REG
/** Held through the function: the argument, the token's working memory. */
const HELD = { argument: r12, work: r13 } as const
const LANES = 16
const VECTOR_BYTES = LANES * 4
/**
 * Constants in vectors: all bits but the sign; the least that a largest magnitude counts as; 127; 1 / 127; the norm's factor; steps
 * of second codes in one of first codes.
 */
const [SIGN, TINY, MOST, STEP, NORM, REST] = [5, 6, 7, 8, 9, 10] as const
/** On the stack: A·x, and one part of it alone; both with a vector more. */
const FRAME = { ranks: 0, part: (MOST_RANKS + LANES) * 4, bytes: 2 * (MOST_RANKS + LANES) * 4 }
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
  code.smallConstant(rcx, workLayout(inputs).bytes)
  code.multiply(rax, rcx)
  code.load(HELD.work, at(rdi, ARGUMENT.work))
  code.add(HELD.work, rax)
  code.move(rax, rsi)
  code.smallConstant(rcx, inputs * 4)
  code.multiply(rax, rcx)
  code.load(rdx, at(rdi, ARGUMENT.x))
  code.add(rdx, rax)
  const constant = (vector: number, bits: number): void => {
    code.smallConstant(rax, bits)
    code.broadcastRegister(vector, rax)
  }
  constant(SIGN, 0x7fffffff)
  constant(TINY, floatBits(1e-30))
  constant(MOST, floatBits(127))
  constant(STEP, floatBits(1 / 127))
  constant(REST, floatBits(REST_STEPS))
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
  for (let lane = 0; lane < 2 * LANES; lane++) {
    code.word(lane < LANES ? 0xffffffff : 0)
  }
}

/** NORM = 1 / √(mean of x² + ε); rdx: x, kept. */
function writeNormFactor(code: VectorAssembler, inputs: number): void {
  const [low, high, sum, other] = [0, 1, 2, 3] as const
  code.zeroVector(sum)
  code.zeroVector(other)
  code.move(rsi, rdx)
  code.smallConstant(rcx, inputs / (2 * LANES))
  code.label('norm')
  code.loadVector(low, at(rsi, 0))
  code.loadVector(high, at(rsi, VECTOR_BYTES))
  code.multiplyAddVector(sum, low, low)
  code.multiplyAddVector(other, high, high)
  code.addConstant(rsi, 2 * VECTOR_BYTES)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('norm')
  code.addVector(sum, sum, other)
  acrossLanes(code, sum, other, (to, a, b) => code.addVector(to, a, b))
  code.smallConstant(rax, floatBits(1 / inputs))
  code.broadcastRegister(other, rax)
  code.load(rax, at(HELD.argument, ARGUMENT.shape))
  code.broadcastVector(low, at(rax, SHAPE_WORDS.epsilon * 8))
  code.multiplyAddVector(low, sum, other)
  code.squareRootVector(low, low)
  code.smallConstant(rax, floatBits(1))
  code.broadcastRegister(high, rax)
  code.divideVector(NORM, high, low)
}

/** Codes with 127 at each block's largest magnitude. rdx: x; r11: the norm's weights. */
function writeBlocks(code: VectorAssembler, inputs: number, normed: boolean): void {
  const [low, high, largest, other, lowCodes, highCodes] = [0, 1, 2, 3, 11, 12] as const
  const work = workLayout(inputs)
  const label = `quantise ${normed ? 'normed' : 'plain'} block`
  code.move(r8, HELD.work)
  code.move(rsi, HELD.work)
  code.smallConstant(rcx, inputs / QUANTISED_BLOCK)
  code.label(label)
  code.loadVector(low, at(rdx, 0))
  code.loadVector(high, at(rdx, VECTOR_BYTES))
  if (normed) {
    code.multiplyVector(low, low, NORM)
    code.multiplyVector(high, high, NORM)
    code.multiplyVector(low, low, at(r11, 0))
    code.multiplyVector(high, high, at(r11, VECTOR_BYTES))
    code.addConstant(r11, QUANTISED_BLOCK * 4)
  }
  code.andVector(largest, low, SIGN)
  code.andVector(other, high, SIGN)
  code.maximumVector(largest, largest, other)
  writeSteps(code, largest, other)
  code.storeFloat(at(rsi, work.scales), other)
  code.multiplyVector(low, low, largest)
  code.multiplyVector(high, high, largest)
  writeCodes(code, low, lowCodes, at(r8, 0))
  writeCodes(code, high, highCodes, at(r8, QUANTISED_BLOCK / 2))
  code.addIntVector(lowCodes, lowCodes, highCodes)
  writeCorrection(code, lowCodes, highCodes)
  code.storeFloat(at(rsi, work.corrections), highCodes)
  writeCodes(code, low, lowCodes, at(r8, work.rests))
  writeCodes(code, high, highCodes, at(r8, work.rests + QUANTISED_BLOCK / 2))
  code.addIntVector(lowCodes, lowCodes, highCodes)
  writeCorrection(code, lowCodes, highCodes)
  code.storeFloat(at(rsi, work.restCorrections), highCodes)
  code.addConstant(rdx, QUANTISED_BLOCK * 4)
  code.addConstant(r8, QUANTISED_BLOCK)
  code.addConstant(rsi, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(label)
}

/** `codes` = `values`, rounded; `values` becomes what was rounded off, in steps of the second codes. */
function writeCodes(code: VectorAssembler, values: number, codes: number, place: Memory): void {
  const rounded = 13
  code.floatToInt(codes, values)
  code.narrowToBytes(place, codes)
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
  const work = workLayout(inputs)
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
    writePart(code, part, work.entries + part * ENTRY.bytes)
  }
  code.label('adapter end')
}

/** A·x, sixteen ranks at a time; rbx: the record; r9: blocks of ranks. */
function writeProjection(code: VectorAssembler, inputs: number): void {
  const work = workLayout(inputs)
  const groups = QUANTISED_BLOCK / GROUP_INPUTS
  const [sum, whole, rest, restStep] = [0, 1, 4, 11] as const
  code.smallConstant(rax, floatBits(1 / REST_STEPS))
  code.broadcastRegister(restStep, rax)
  code.load(r8, at(rbx, RECORD.a * 8))
  code.move(r10, rsp)
  code.label('project')
  code.zeroVector(sum)
  code.move(rdx, HELD.work)
  code.move(rsi, HELD.work)
  code.smallConstant(rcx, inputs / QUANTISED_BLOCK)
  code.label('project block')
  code.broadcastVector(whole, at(rsi, work.corrections))
  code.broadcastVector(rest, at(rsi, work.restCorrections))
  for (let group = 0; group < groups; group++) {
    const weights = 2 + (group & 1)
    code.loadVector(weights, at(r8, group * GROUP_BYTES))
    code.prefetch(at(r8, group * GROUP_BYTES + AHEAD_BYTES))
    code.dotCodes([whole], [weights], at(rdx, group * GROUP_INPUTS))
    code.dotCodes([rest], [weights], at(rdx, work.rests + group * GROUP_INPUTS))
  }
  code.intToFloat(whole, whole)
  code.intToFloat(rest, rest)
  code.multiplyAddVector(whole, rest, restStep)
  code.multiplyAddBroadcast(sum, whole, at(rsi, work.scales))
  code.addConstant(r8, groups * GROUP_BYTES)
  code.addConstant(rdx, QUANTISED_BLOCK)
  code.addConstant(rsi, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('project block')
  code.storeVector(at(r10, FRAME.ranks), sum)
  code.addConstant(r10, VECTOR_BYTES)
  code.subtractConstant(r9, 1)
  code.jumpIfNotZero('project')
}

/** One part's ranks as codes of one step; r14: where codes go, moved on. */
function writePart(code: VectorAssembler, part: number, entry: number): void {
  const [values, largest, step, sum, restSum, restStep, codes] = [0, 1, 2, 3, 11, 12, 14] as const
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
  code.addConstant(r9, LANES - 1)
  code.shiftRight(r9, Math.log2(LANES))
  code.move(r8, r9)
  code.load(rsi, record(RECORD.partRank))
  code.shiftLeft(rsi, 2)
  code.add(rsi, rsp)
  code.move(rdi, rsp)
  code.zeroVector(largest)
  code.label(`part ${part} largest`)
  // r11: lanes of this vector that are another part's
  code.smallConstant(r11, LANES)
  code.compare(rcx, r11)
  code.jumpIfNotBelow(`part ${part} whole`)
  code.move(r11, rcx)
  code.label(`part ${part} whole`)
  code.addressOfLabel(r10, PART_MASK)
  code.addConstant(r10, VECTOR_BYTES)
  code.move(rax, r11)
  code.shiftLeft(rax, 2)
  code.subtract(r10, rax)
  code.loadVector(values, at(rsi, FRAME.ranks))
  code.andVector(values, values, at(r10, 0))
  code.storeVector(at(rdi, FRAME.part), values)
  code.andVector(values, values, SIGN)
  code.maximumVector(largest, largest, values)
  code.addConstant(rsi, VECTOR_BYTES)
  code.addConstant(rdi, VECTOR_BYTES)
  code.subtract(rcx, r11)
  code.subtractConstant(r8, 1)
  code.jumpIfNotZero(`part ${part} largest`)
  writeSteps(code, largest, step)
  code.storeFloat(at(HELD.work, entry + ENTRY.scale), step)
  code.smallConstant(rax, floatBits(1 / REST_STEPS))
  code.broadcastRegister(restStep, rax)
  code.multiplyVector(step, step, restStep)
  code.storeFloat(at(HELD.work, entry + ENTRY.restScale), step)
  code.zeroVector(sum)
  code.zeroVector(restSum)
  code.move(rdi, rsp)
  code.label(`part ${part} codes`)
  code.multiplyVector(values, largest, at(rdi, FRAME.part))
  writeCodes(code, values, codes, at(r14, 0))
  code.addIntVector(sum, sum, codes)
  writeCodes(code, values, codes, at(r14, LORA_CODES_BYTES))
  code.addIntVector(restSum, restSum, codes)
  code.addConstant(rdi, VECTOR_BYTES)
  code.addConstant(r14, TILE_OUTPUTS)
  code.subtractConstant(r9, 1)
  code.jumpIfNotZero(`part ${part} codes`)
  writeCorrection(code, sum, values)
  code.storeFloat(at(HELD.work, entry + ENTRY.correction), values)
  writeCorrection(code, restSum, values)
  code.storeFloat(at(HELD.work, entry + ENTRY.restCorrection), values)
  code.label(end)
}
