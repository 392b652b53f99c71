/**
 * The second half of the int8 product: sixteen outputs of all tokens, from the codes of x; then bias, adapters, gate and sum, while
 * the outputs are in registers.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'
import { at, type Memory, REG } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { ONE_IN_TABLE, writeExponential } from '../machine-code/vector-math.ts'
import {
  ARGUMENT,
  CODE_BYTES,
  ENTRY,
  GROUP_BYTES,
  GROUP_INPUTS,
  SHAPE_WORDS,
  TILE_BLOCK_BYTES,
  TILE_OUTPUTS,
  workLayout,
} from './linear-layout.ts'
import { MOST_TOKENS_AT_ONCE, type TileRegisters, TOKENS_AT_ONCE, tileRegisters } from './registers.ts'

export const EXPONENTIAL_TABLE = 'exponential'

const TILE_ROW_BYTES = TILE_OUTPUTS * 4
/**
 * By lanes: W is asked for so many blocks ahead of its use, as was best on a processor with each: further than half a page, and
 * across its end, at which the processor's own prefetching stops.
 */
const AHEAD_BLOCKS = { 16: 4, 8: 16 } as const

const { rax, rcx, rdx, rsp, rbp, rsi, rdi, r10, r11, r12, r13, r14, r15 } = REG
/** Held through the function: the argument, tokens left, the working memory and output of the next one, bytes of an output row. */
const HELD = { argument: rbp, tokens: r12, work: r13, out: r14, outStride: r15 } as const

/** The tile, and where there is a gate its partner in the second half of the matrix: two of each. */
const FRAME = {
  /** Sums of the first tile while the second's are made. */
  gates: 0,
  /** Sums between blocks, of passes that have no registers for them: half as many tokens as gates have room for. */
  sums: (MOST_TOKENS_AT_ONCE / 2) * TILE_ROW_BYTES,
  weights: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES,
  bias: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x10,
  base: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x20,
  /** Of the tile's part: where its entry lies in a token's working memory, and the tile's number in it. */
  entry: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x30,
  inPart: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x40,
  baseStride: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x50,
  /** From an output to what it is added to. */
  toAdd: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x58,
  bytes: MOST_TOKENS_AT_ONCE * TILE_ROW_BYTES + 0x60,
}

type Half = 0 | 1

/** Some tokens on their way through a tile. */
interface Pass {
  inputs: number
  tokens: readonly number[]
  registers: TileRegisters
  /** Of a unit of outputs in a row of the tile. */
  place: (unit: number) => number
}

/** `tile(argument, index)`. */
export function writeTile(code: VectorAssembler, inputs: number): void {
  const saved = [rbp, r12, r13, r14, r15]
  code.align(16)
  code.label('tile')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, FRAME.bytes)
  code.holdDots()
  writeEntry(code, inputs)
  for (const tokens of TOKENS_AT_ONCE[code.lanes]) {
    const next = `fewer than ${tokens}`
    code.label(`tokens ${tokens}`)
    code.compareConstant(HELD.tokens, tokens)
    code.jumpIfBelow(next)
    writeTokens(code, inputs, tokens)
    code.addConstant(HELD.work, tokens * workLayout(inputs, code.xBytes).bytes)
    code.subtractConstant(HELD.tokens, tokens)
    if (tokens === TOKENS_AT_ONCE[code.lanes][0]) {
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
  code.smallConstant(rcx, workLayout(inputs, code.xBytes).entries)
  for (const [i, word] of [SHAPE_WORDS.secondPart, SHAPE_WORDS.thirdPart].entries()) {
    code.load(rdx, at(r11, word * 8))
    code.compare(rsi, rdx)
    code.jumpIfBelow(`part of half ${half}`)
    code.move(rax, rsi)
    code.subtract(rax, rdx)
    code.smallConstant(rcx, workLayout(inputs, code.xBytes).entries + (i + 1) * ENTRY.bytes)
  }
  code.label(`part of half ${half}`)
  code.store(place(FRAME.entry), rcx)
  code.store(place(FRAME.inPart), rax)
}

function writeTokens(code: VectorAssembler, inputs: number, count: number): void {
  const tokens = Array.from({ length: count }, (_, token) => token)
  const registers = tileRegisters(code.lanes, count)
  const pass: Pass = { inputs, tokens, registers, place: (unit) => unit * code.lanes * 4 }
  writeSums(code, pass, 0)
  code.load(rax, at(HELD.argument, ARGUMENT.shape))
  code.load(rax, at(rax, SHAPE_WORDS.activation * 8))
  code.testZero(rax)
  code.jumpIfZero(`ungated ${count}`)
  eachSum(pass, (token, unit) => code.storeVector(gatePlace(pass, token, unit), registers.sum(token, unit)))
  writeSums(code, pass, 1)
  writeGates(code, pass)
  code.label(`ungated ${count}`)
  // The next tokens' base
  code.load(rcx, at(rsp, FRAME.baseStride))
  code.shiftLeft(rcx, Math.log2(count))
  for (const half of [0, 1]) {
    code.load(rax, at(rsp, FRAME.base + 8 * half))
    code.add(rax, rcx)
    code.store(at(rsp, FRAME.base + 8 * half), rax)
  }
  writeOutputs(code, pass)
}

function gatePlace({ place }: Pass, token: number, unit: number) {
  return at(rsp, FRAME.gates + token * TILE_ROW_BYTES + place(unit))
}

function eachSum({ tokens, registers }: Pass, visit: (token: number, unit: number) => void): void {
  for (const token of tokens) {
    for (const unit of registers.units) {
      visit(token, unit)
    }
  }
}

/** The outputs of some tokens, up to where they may meet a gate. */
function writeSums(code: VectorAssembler, pass: Pass, half: Half): void {
  const { tokens, registers, place } = pass
  const { units, sum } = registers
  const name = `${tokens.length} ${half}`
  const [vector] = [0] as const
  code.load(rax, at(HELD.argument, ARGUMENT.base))
  code.testZero(rax)
  code.jumpIfNotZero(`base ${name}`)
  writeProduct(code, pass, half)
  code.load(rax, at(HELD.argument, ARGUMENT.bias))
  code.testZero(rax)
  code.jumpIfZero(`product end ${name}`)
  code.load(rax, at(rsp, FRAME.bias + 8 * half))
  for (const unit of units) {
    code.loadVector(vector, at(rax, place(unit)))
    for (const token of tokens) {
      code.addVector(sum(token, unit), sum(token, unit), vector)
    }
  }
  code.jump(`product end ${name}`)
  code.label(`base ${name}`)
  code.load(rax, at(rsp, FRAME.base + 8 * half))
  code.load(rcx, at(rsp, FRAME.baseStride))
  for (const token of tokens) {
    for (const unit of units) {
      code.loadVector(sum(token, unit), at(rax, place(unit)))
    }
    code.add(rax, rcx)
  }
  code.label(`product end ${name}`)
  code.load(rax, at(HELD.argument, ARGUMENT.rows))
  code.testZero(rax)
  code.jumpIfZero(`adapted ${name}`)
  for (const token of tokens) {
    writeAdapter(code, pass, token, half)
  }
  code.label(`adapted ${name}`)
}

/** One tile times some tokens. rax: W; rdx: codes; rcx: scales and corrections. */
function writeProduct(code: VectorAssembler, pass: Pass, half: Half): void {
  const { inputs, tokens, registers, place } = pass
  const { units, weights, scales, whole, sum, sumsInMemory } = registers
  const name = `${tokens.length} ${half}`
  const work = workLayout(inputs, code.xBytes)
  const groupBytes = GROUP_INPUTS * code.xBytes
  const ahead = AHEAD_BLOCKS[code.lanes] * TILE_BLOCK_BYTES
  const waiting = (token: number, unit: number) => at(rsp, FRAME.sums + token * TILE_ROW_BYTES + place(unit))
  eachSum(pass, (token, unit) => {
    code.zeroVector(sum(token, unit))
    if (sumsInMemory) {
      code.storeVector(waiting(token, unit), sum(token, unit))
    }
  })
  code.load(rax, at(rsp, FRAME.weights + 8 * half))
  code.move(rdx, HELD.work)
  code.move(rcx, HELD.work)
  code.smallConstant(r11, inputs / QUANTISED_BLOCK)
  code.label(`product ${name}`)
  eachSum(pass, (token, unit) =>
    code.broadcastVector(whole(token, unit), at(rcx, token * work.bytes + work.corrections)),
  )
  for (let group = 0; group < QUANTISED_BLOCK / GROUP_INPUTS; group++) {
    const codes = units.map((unit) => weights(group, unit))
    for (const unit of units) {
      code.loadCodes(codes[unit]!, at(rax, group * GROUP_BYTES + place(unit)))
    }
    code.prefetch(at(rax, group * GROUP_BYTES + ahead))
    for (const token of tokens) {
      const wholes = units.map((unit) => whole(token, unit))
      code.dotCodes(wholes, codes, at(rdx, token * work.bytes + group * groupBytes))
    }
  }
  for (const unit of units) {
    code.loadVector(scales(unit), at(rax, CODE_BYTES + place(unit)))
  }
  code.prefetch(at(rax, CODE_BYTES + ahead))
  eachSum(pass, (token, unit) => {
    code.intToFloat(whole(token, unit), whole(token, unit))
    code.multiplyVector(whole(token, unit), whole(token, unit), scales(unit))
    const scale = at(rcx, token * work.bytes + work.scales)
    if (sumsInMemory) {
      code.broadcastVector(registers.free, scale)
      code.multiplyThenAddVector(whole(token, unit), registers.free, waiting(token, unit))
      code.storeVector(waiting(token, unit), whole(token, unit))
    } else {
      code.multiplyAddBroadcast(sum(token, unit), whole(token, unit), scale)
    }
  })
  code.addConstant(rax, TILE_BLOCK_BYTES)
  code.addConstant(rdx, QUANTISED_BLOCK * code.xBytes)
  code.addConstant(rcx, 4)
  code.subtractConstant(r11, 1)
  code.jumpIfNotZero(`product ${name}`)
}

/** `sum += B·(A·x)` where the token's adapter has the tile's part. A tile of B: groups of ranks, then sixteen float32 scales. */
function writeAdapter(code: VectorAssembler, pass: Pass, token: number, half: Half): void {
  const { inputs, tokens, registers } = pass
  const name = `adapter ${tokens.length} ${half} ${token}`
  const entry = (field: number) => at(rax, token * workLayout(inputs, code.xBytes).bytes + field)
  code.load(rax, at(rsp, FRAME.entry + 8 * half))
  code.add(rax, HELD.work)
  code.load(rcx, entry(ENTRY.groups))
  code.testZero(rcx)
  code.jumpIfZero(`${name} end`)
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
  const { together } = registers.adapter(token)
  for (const [i, units] of together.entries()) {
    if (i > 0) {
      // Back at the tile's start
      code.load(rcx, entry(ENTRY.groups))
      code.move(rsi, rcx)
      code.shiftLeft(rsi, Math.log2(GROUP_BYTES))
      code.subtract(rdx, rsi)
    }
    writeAdapterUnits(code, pass, { token, units, entry, label: `${name} ${i}` })
  }
  code.label(`${name} end`)
}

/** rdx: the tile of B, left at its scales; rcx: groups; r10: bytes of a tile. */
function writeAdapterUnits(
  code: VectorAssembler,
  { inputs, registers, place }: Pass,
  given: { token: number; units: readonly number[]; entry: (field: number) => Memory; label: string },
): void {
  const { token, units, entry, label } = given
  const { sum } = registers
  const { weights, product, rest } = registers.adapter(token)
  const ahead = (): void => {
    if (units.includes(0)) {
      code.prefetch({ base: rdx, offset: 0, index: r10, scale: 1 })
    }
  }
  code.load(rsi, entry(ENTRY.codes))
  for (const unit of units) {
    code.broadcastVector(product(unit), entry(ENTRY.correction))
    code.broadcastVector(rest(unit), entry(ENTRY.restCorrection))
  }
  code.label(label)
  ahead()
  for (const unit of units) {
    code.loadCodes(weights(unit), at(rdx, place(unit)))
  }
  code.dotCodes(units.map(product), units.map(weights), at(rsi))
  code.dotCodes(units.map(rest), units.map(weights), at(rsi, workLayout(inputs, code.xBytes).loraRests))
  code.addConstant(rdx, GROUP_BYTES)
  code.addConstant(rsi, GROUP_INPUTS * code.xBytes)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(label)
  ahead()
  for (const unit of units) {
    code.intToFloat(product(unit), product(unit))
    code.intToFloat(rest(unit), rest(unit))
    code.multiplyVector(product(unit), product(unit), at(rdx, place(unit)))
    code.multiplyVector(rest(unit), rest(unit), at(rdx, place(unit)))
    code.multiplyAddBroadcast(sum(token, unit), product(unit), entry(ENTRY.scale))
    code.multiplyAddBroadcast(sum(token, unit), rest(unit), entry(ENTRY.restScale))
  }
}

/** sum = g / (1 + e^-g) · sum, with g from the first tile. */
function writeGates(code: VectorAssembler, pass: Pass): void {
  const { registers } = pass
  const [gate, power, one, temporary] = [0, 1, 2, 3] as const
  code.addressOfLabel(r11, EXPONENTIAL_TABLE)
  code.broadcastVector(one, at(r11, ONE_IN_TABLE))
  eachSum(pass, (token, unit) => {
    const sum = registers.sum(token, unit)
    code.loadVector(gate, gatePlace(pass, token, unit))
    code.zeroVector(power)
    code.subtractVector(power, power, gate)
    writeExponential(code, power, r11, [temporary, registers.free])
    code.addVector(power, power, one)
    code.divideVector(gate, gate, power)
    code.multiplyVector(sum, sum, gate)
  })
}

function writeOutputs(code: VectorAssembler, pass: Pass): void {
  const { tokens, registers, place } = pass
  const { units, sum } = registers
  const overTokens = (row: number, visit: (token: number, unit: number) => void): void => {
    for (const token of tokens) {
      for (const unit of units) {
        visit(token, unit)
      }
      code.add(row, HELD.outStride)
    }
  }
  code.load(rax, at(HELD.argument, ARGUMENT.addTo))
  code.testZero(rax)
  code.jumpIfZero(`outputs ${tokens.length}`)
  code.load(rax, at(rsp, FRAME.toAdd))
  code.add(rax, HELD.out)
  overTokens(rax, (token, unit) => code.addVector(sum(token, unit), sum(token, unit), at(rax, place(unit))))
  code.label(`outputs ${tokens.length}`)
  overTokens(HELD.out, (token, unit) => code.storeVector(at(HELD.out, place(unit)), sum(token, unit)))
}
