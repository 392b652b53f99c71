/**
 * The second half of the int8 product: sixteen outputs of all tokens, from the codes of x; then bias, adapters, gate and sum, while
 * the outputs are in registers.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'
import { at, REG } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { ONE_IN_TABLE, writeExponential } from '../machine-code/vector-math.ts'
import {
  ARGUMENT,
  CODE_BYTES,
  ENTRY,
  GROUP_BYTES,
  GROUP_INPUTS,
  LORA_CODES_BYTES,
  SHAPE_WORDS,
  TILE_BLOCK_BYTES,
  TILE_OUTPUTS,
  workLayout,
} from './linear-layout.ts'

export const EXPONENTIAL_TABLE = 'exponential'

/** Tokens that share a pass over a tile; the rest runs in smaller passes. */
const TOKENS_AT_ONCE = [8, 4, 2, 1] as const
const MOST_AT_ONCE = TOKENS_AT_ONCE[0]
const TILE_ROW_BYTES = TILE_OUTPUTS * 4
/** W is asked for so far ahead of its use: further than a page, at which the processor's own prefetching stops. */
const AHEAD_BYTES = 4 * TILE_BLOCK_BYTES

const { rax, rcx, rdx, rsp, rbp, rsi, rdi, r10, r11, r12, r13, r14, r15 } = REG
/** Held through the function: the argument, tokens left, the working memory and output of the next one, bytes of an output row. */
const HELD = { argument: rbp, tokens: r12, work: r13, out: r14, outStride: r15 } as const

/** The tile, and where there is a gate its partner in the second half of the matrix: two of each. */
const FRAME = {
  /** Sums of the first tile while the second's are made. */
  gates: 0,
  weights: MOST_AT_ONCE * TILE_ROW_BYTES,
  bias: MOST_AT_ONCE * TILE_ROW_BYTES + 0x10,
  base: MOST_AT_ONCE * TILE_ROW_BYTES + 0x20,
  /** Of the tile's part: where its entry lies in a token's working memory, and the tile's number in it. */
  entry: MOST_AT_ONCE * TILE_ROW_BYTES + 0x30,
  inPart: MOST_AT_ONCE * TILE_ROW_BYTES + 0x40,
  baseStride: MOST_AT_ONCE * TILE_ROW_BYTES + 0x50,
  /** From an output to what it is added to. */
  toAdd: MOST_AT_ONCE * TILE_ROW_BYTES + 0x58,
  bytes: MOST_AT_ONCE * TILE_ROW_BYTES + 0x60,
}

type Half = 0 | 1
const sum = (token: number): number => 16 + token
const whole = (token: number): number => 8 + token

/** `tile(argument, index)`. */
export function writeTile(code: VectorAssembler, inputs: number): void {
  const saved = [rbp, r12, r13, r14, r15]
  code.align(16)
  code.label('tile')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, FRAME.bytes)
  writeEntry(code, inputs)
  for (const tokens of TOKENS_AT_ONCE) {
    const next = `fewer than ${tokens}`
    code.label(`tokens ${tokens}`)
    code.compareConstant(HELD.tokens, tokens)
    code.jumpIfBelow(next)
    writeTokens(code, inputs, tokens)
    code.addConstant(HELD.work, tokens * workLayout(inputs).bytes)
    code.subtractConstant(HELD.tokens, tokens)
    if (tokens === MOST_AT_ONCE) {
      code.jump(`tokens ${tokens}`)
    }
    code.label(next)
  }
  code.zeroUpper()
  code.addConstant(rsp, FRAME.bytes)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

function writeEntry(code: VectorAssembler, inputs: number): void {
  code.move(HELD.argument, rdi)
  code.load(HELD.work, at(rdi, ARGUMENT.work))
  code.load(rax, at(rdi, ARGUMENT.sizes))
  code.load(HELD.tokens, at(rax, 0))
  code.load(r11, at(rdi, ARGUMENT.shape))
  code.load(HELD.outStride, at(r11, SHAPE_WORDS.outputs * 8))
  code.shiftLeft(HELD.outStride, 2)
  code.store(at(rsp, FRAME.baseStride), HELD.outStride)
  code.move(r10, rsi)
  writeTilePlaces(code, inputs, 0)
  code.load(rax, at(r11, SHAPE_WORDS.activation * 8))
  code.testZero(rax)
  code.jumpIfZero('tile alone')
  code.shiftRight(HELD.outStride, 1)
  // The partner: as many tiles on as half a row has.
  code.move(rax, HELD.outStride)
  code.shiftRight(rax, Math.log2(TILE_ROW_BYTES))
  code.move(rsi, r10)
  code.add(rsi, rax)
  writeTilePlaces(code, inputs, 1)
  code.label('tile alone')
  code.move(rax, r10)
  code.shiftLeft(rax, Math.log2(TILE_ROW_BYTES))
  code.load(HELD.out, at(rdi, ARGUMENT.out))
  code.load(rcx, at(rdi, ARGUMENT.addTo))
  code.subtract(rcx, HELD.out)
  code.store(at(rsp, FRAME.toAdd), rcx)
  code.add(HELD.out, rax)
}

/** rsi: the tile; r11: shape; keeps both, rdi and r10. */
function writeTilePlaces(code: VectorAssembler, inputs: number, half: Half): void {
  const place = (offset: number) => at(rsp, offset + 8 * half)
  code.move(rax, rsi)
  code.smallConstant(rcx, (inputs / QUANTISED_BLOCK) * TILE_BLOCK_BYTES)
  code.multiply(rax, rcx)
  code.load(rcx, at(rdi, ARGUMENT.weights))
  code.add(rax, rcx)
  code.store(place(FRAME.weights), rax)
  for (const [argument, offset] of [
    [ARGUMENT.bias, FRAME.bias],
    [ARGUMENT.base, FRAME.base],
  ] as const) {
    code.move(rax, rsi)
    code.shiftLeft(rax, Math.log2(TILE_ROW_BYTES))
    code.load(rcx, at(rdi, argument))
    code.add(rax, rcx)
    code.store(place(offset), rax)
  }
  code.move(rax, rsi)
  code.smallConstant(rcx, workLayout(inputs).entries)
  for (const [i, word] of [SHAPE_WORDS.secondPart, SHAPE_WORDS.thirdPart].entries()) {
    code.load(rdx, at(r11, word * 8))
    code.compare(rsi, rdx)
    code.jumpIfBelow(`part of half ${half}`)
    code.move(rax, rsi)
    code.subtract(rax, rdx)
    code.smallConstant(rcx, workLayout(inputs).entries + (i + 1) * ENTRY.bytes)
  }
  code.label(`part of half ${half}`)
  code.store(place(FRAME.entry), rcx)
  code.store(place(FRAME.inPart), rax)
}

function writeTokens(code: VectorAssembler, inputs: number, tokens: number): void {
  const each = Array.from({ length: tokens }, (_, token) => token)
  writeSums(code, inputs, tokens, 0)
  code.load(rax, at(HELD.argument, ARGUMENT.shape))
  code.load(rax, at(rax, SHAPE_WORDS.activation * 8))
  code.testZero(rax)
  code.jumpIfZero(`ungated ${tokens}`)
  for (const token of each) {
    code.storeVector(at(rsp, FRAME.gates + token * TILE_ROW_BYTES), sum(token))
  }
  writeSums(code, inputs, tokens, 1)
  writeGates(code, each)
  code.label(`ungated ${tokens}`)
  // The next tokens' base
  code.load(rcx, at(rsp, FRAME.baseStride))
  code.shiftLeft(rcx, Math.log2(tokens))
  for (const half of [0, 1]) {
    code.load(rax, at(rsp, FRAME.base + 8 * half))
    code.add(rax, rcx)
    code.store(at(rsp, FRAME.base + 8 * half), rax)
  }
  writeOutputs(code, each)
}

/** The tile's outputs of some tokens, up to where they may meet a gate. */
function writeSums(code: VectorAssembler, inputs: number, tokens: number, half: Half): void {
  const name = `${tokens} ${half}`
  const each = Array.from({ length: tokens }, (_, token) => token)
  const [vector] = [0] as const
  code.load(rax, at(HELD.argument, ARGUMENT.base))
  code.testZero(rax)
  code.jumpIfNotZero(`base ${name}`)
  writeProduct(code, inputs, tokens, half)
  code.load(rax, at(HELD.argument, ARGUMENT.bias))
  code.testZero(rax)
  code.jumpIfZero(`product end ${name}`)
  code.load(rax, at(rsp, FRAME.bias + 8 * half))
  code.loadVector(vector, at(rax))
  for (const token of each) {
    code.addVector(sum(token), sum(token), vector)
  }
  code.jump(`product end ${name}`)
  code.label(`base ${name}`)
  code.load(rax, at(rsp, FRAME.base + 8 * half))
  code.load(rcx, at(rsp, FRAME.baseStride))
  for (const token of each) {
    code.loadVector(sum(token), at(rax))
    code.add(rax, rcx)
  }
  code.label(`product end ${name}`)
  code.load(rax, at(HELD.argument, ARGUMENT.rows))
  code.testZero(rax)
  code.jumpIfZero(`adapted ${name}`)
  for (const token of each) {
    writeAdapter(code, inputs, token, name, half)
  }
  code.label(`adapted ${name}`)
}

/** One tile times some tokens. rax: W; rdx: codes; rcx: scales and corrections. */
function writeProduct(code: VectorAssembler, inputs: number, tokens: number, half: Half): void {
  const name = `${tokens} ${half}`
  const each = Array.from({ length: tokens }, (_, token) => token)
  const scales = 4
  const work = workLayout(inputs)
  for (const token of each) {
    code.zeroVector(sum(token))
  }
  code.load(rax, at(rsp, FRAME.weights + 8 * half))
  code.move(rdx, HELD.work)
  code.move(rcx, HELD.work)
  code.smallConstant(r11, inputs / QUANTISED_BLOCK)
  code.label(`product ${name}`)
  for (const token of each) {
    code.broadcastVector(whole(token), at(rcx, token * work.bytes + work.corrections))
  }
  for (let group = 0; group < QUANTISED_BLOCK / GROUP_INPUTS; group++) {
    const weights = group % scales
    code.loadVector(weights, at(rax, group * GROUP_BYTES))
    code.prefetch(at(rax, group * GROUP_BYTES + AHEAD_BYTES))
    for (const token of each) {
      code.dotCodes([whole(token)], [weights], at(rdx, token * work.bytes + group * GROUP_INPUTS))
    }
  }
  code.loadVector(scales, at(rax, CODE_BYTES))
  code.prefetch(at(rax, CODE_BYTES + AHEAD_BYTES))
  for (const token of each) {
    code.intToFloat(whole(token), whole(token))
    code.multiplyVector(whole(token), whole(token), scales)
    code.multiplyAddBroadcast(sum(token), whole(token), at(rcx, token * work.bytes + work.scales))
  }
  code.addConstant(rax, TILE_BLOCK_BYTES)
  code.addConstant(rdx, QUANTISED_BLOCK)
  code.addConstant(rcx, 4)
  code.subtractConstant(r11, 1)
  code.jumpIfNotZero(`product ${name}`)
}

/** `sum += B·(A·x)` where the token's adapter has the tile's part. A tile of B: groups of ranks, then sixteen float32 scales. */
function writeAdapter(code: VectorAssembler, inputs: number, token: number, name: string, half: Half): void {
  const end = `adapter ${name} ${token} end`
  const [weights, product, rest] = [token & 1, whole(token), 2 + (token & 3)] as const
  const entry = (field: number) => at(rax, token * workLayout(inputs).bytes + field)
  code.load(rax, at(rsp, FRAME.entry + 8 * half))
  code.add(rax, HELD.work)
  code.load(rcx, entry(ENTRY.groups))
  code.testZero(rcx)
  code.jumpIfZero(end)
  // rdx: the tile of B; rsi: codes of A·x
  code.move(rdx, rcx)
  code.addConstant(rdx, 1)
  code.shiftLeft(rdx, Math.log2(GROUP_BYTES))
  // Tiles of B are too short to be seen as a stream: the next one is asked for here, and comes while W's next tile is read.
  code.move(r10, rdx)
  code.load(rsi, at(rsp, FRAME.inPart + 8 * half))
  code.multiply(rdx, rsi)
  code.load(rsi, entry(ENTRY.b))
  code.add(rdx, rsi)
  code.load(rsi, entry(ENTRY.codes))
  code.broadcastVector(product, entry(ENTRY.correction))
  code.broadcastVector(rest, entry(ENTRY.restCorrection))
  code.label(`adapter ${name} ${token}`)
  code.prefetch({ base: rdx, offset: 0, index: r10, scale: 1 })
  code.loadVector(weights, at(rdx))
  code.dotCodes([product], [weights], at(rsi))
  code.dotCodes([rest], [weights], at(rsi, LORA_CODES_BYTES))
  code.addConstant(rdx, GROUP_BYTES)
  code.addConstant(rsi, GROUP_INPUTS)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(`adapter ${name} ${token}`)
  code.prefetch({ base: rdx, offset: 0, index: r10, scale: 1 })
  code.intToFloat(product, product)
  code.intToFloat(rest, rest)
  code.multiplyVector(product, product, at(rdx))
  code.multiplyVector(rest, rest, at(rdx))
  code.multiplyAddBroadcast(sum(token), product, entry(ENTRY.scale))
  code.multiplyAddBroadcast(sum(token), rest, entry(ENTRY.restScale))
  code.label(end)
}

/** sum = g / (1 + e^-g) · sum, with g from the first tile. */
function writeGates(code: VectorAssembler, each: readonly number[]): void {
  const [gate, power, one, temporary, other] = [0, 1, 2, 3, 4] as const
  code.addressOfLabel(r11, EXPONENTIAL_TABLE)
  code.broadcastVector(one, at(r11, ONE_IN_TABLE))
  for (const token of each) {
    code.loadVector(gate, at(rsp, FRAME.gates + token * TILE_ROW_BYTES))
    code.zeroVector(power)
    code.subtractVector(power, power, gate)
    writeExponential(code, power, r11, [temporary, other])
    code.addVector(power, power, one)
    code.divideVector(gate, gate, power)
    code.multiplyVector(sum(token), sum(token), gate)
  }
}

function writeOutputs(code: VectorAssembler, each: readonly number[]): void {
  const name = `${each.length}`
  code.load(rax, at(HELD.argument, ARGUMENT.addTo))
  code.testZero(rax)
  code.jumpIfZero(`outputs ${name}`)
  code.load(rax, at(rsp, FRAME.toAdd))
  code.add(rax, HELD.out)
  for (const token of each) {
    code.addVector(sum(token), sum(token), at(rax))
    code.add(rax, HELD.outStride)
  }
  code.label(`outputs ${name}`)
  for (const token of each) {
    code.storeVector(at(HELD.out), sum(token))
    code.add(HELD.out, HELD.outStride)
  }
}
