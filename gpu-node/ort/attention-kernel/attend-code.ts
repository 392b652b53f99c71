/**
 * The attention kernel's main function: one token, one key head and the query heads that share it. Scores of up to 256 positions
 * at a time, softmax by running maximum and sum (Milakov and Gimelshein, arXiv:1805.02867), then the values.
 */

import { at, type Memory, REG } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { acrossLanes, ONE_IN_TABLE, writeExponential } from '../machine-code/vector-math.ts'
import {
  type AttentionShape,
  attentionFrame,
  BLOCK_BYTES,
  BLOCK_POSITIONS,
  KV_BYTES,
  SCORE_BYTES,
  SCORE_POSITIONS,
  SHAPE_WORDS,
  TOKEN_HEADER_WORDS,
  TOKEN_WORDS,
} from './attention-layout.ts'
import { ARGUMENT, writeRotation } from './attention-parts.ts'
import {
  blockVectors,
  type ScoreChunk,
  scoreChunks,
  type ValueChunk,
  valueChunks,
  vectorOffsets,
} from './attention-registers.ts'
import { writeMasks, writeRemoved } from './score-masks.ts'

export const EXPONENTIAL_TABLE = 'exponential'

/** Held through the function: cache rows of this head, positions seen and the first of them, the block's start, tables, output. */
const { rax, rbx, rcx, rdx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = REG
const HELD = { keys: r8, values: r9, length: r10, start: r11, block: r12, table: r13, out: r14, shape: r15 } as const

export function writeAttend(code: VectorAssembler, shape: AttentionShape): void {
  const saved = [rbp, rbx, r12, r13, r14, r15]
  const frame = attentionFrame(shape)
  code.align(16)
  code.label('attend')
  for (const register of saved) {
    code.push(register)
  }
  code.move(rbp, rsp)
  code.subtractConstant(rsp, frame.bytes)
  code.andConstant(rsp, -BLOCK_BYTES)
  writeEntry(code, shape)
  code.label('attend block')
  // rbx: positions left, at most 256 of which are taken; rdi: their blocks of sixteen
  code.move(rbx, HELD.length)
  code.subtract(rbx, HELD.block)
  code.smallConstant(rdi, SCORE_POSITIONS)
  code.compare(rbx, rdi)
  code.jumpIfBelow('attend rest')
  code.move(rbx, rdi)
  code.label('attend rest')
  code.move(rdi, rbx)
  code.addConstant(rdi, BLOCK_POSITIONS - 1)
  code.shiftRight(rdi, Math.log2(BLOCK_POSITIONS))
  for (const [index, chunk] of scoreChunks(code, shape).entries()) {
    writeScores(code, shape, chunk, index)
  }
  writeSoftcap(code, shape)
  writeMasks(code, shape, HELD)
  for (let head = 0; head < shape.group; head++) {
    writeSoftmax(code, shape, head)
  }
  for (const [index, chunk] of valueChunks(code, shape).entries()) {
    writeValues(code, shape, chunk, index)
  }
  code.addConstant(HELD.block, SCORE_POSITIONS)
  code.compare(HELD.block, HELD.length)
  code.jumpIfBelow('attend block')
  writeOutput(code, shape)
  code.zeroUpper()
  code.move(rsp, rbp)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `attend(argument, index)`: what the index means, where its cache rows lie, its rotated and scaled queries. */
function writeEntry(code: VectorAssembler, shape: AttentionShape): void {
  const { headSize, group, rotaryHalf, kv } = shape
  const frame = attentionFrame(shape)
  const headBytes = headSize * 4
  code.load(HELD.shape, at(rdi, ARGUMENT.shape))
  code.load(rcx, at(HELD.shape, SHAPE_WORDS.kvHeads * 8))
  writeTask(code)
  // Tokens from both ends in turn, so that late ones, which see more, spread over the threads.
  code.move(rsi, rax)
  code.shiftRight(rsi, 1)
  code.andConstant(rax, 1)
  code.load(r12, at(rdi, ARGUMENT.tokens))
  code.testZero(rax)
  code.jumpIfZero('attend token')
  code.load(rax, at(r12, 0))
  code.subtractConstant(rax, 1)
  code.subtract(rax, rsi)
  code.move(rsi, rax)
  code.label('attend token')
  // rsi: token; rbx: key head; r12: the token's words
  code.move(rax, rsi)
  code.smallConstant(rdx, TOKEN_WORDS * 8)
  code.multiply(rax, rdx)
  code.add(r12, rax)
  code.addConstant(r12, TOKEN_HEADER_WORDS * 8)
  code.load(HELD.length, at(r12, 8))
  code.addConstant(HELD.length, 1)
  code.smallConstant(HELD.start, 0)
  code.load(rax, at(HELD.shape, SHAPE_WORDS.window * 8))
  code.testZero(rax)
  code.jumpIfZero('attend all')
  code.compare(HELD.length, rax)
  code.jumpIfBelow('attend all')
  code.move(HELD.start, HELD.length)
  code.subtract(HELD.start, rax)
  code.label('attend all')
  // (row · kvHeads + head) · maxPositions · D
  code.load(rax, at(r12, 0))
  code.multiply(rax, rcx)
  code.add(rax, rbx)
  code.load(rdx, at(HELD.shape, SHAPE_WORDS.maxPositions * 8))
  code.multiply(rax, rdx)
  code.smallConstant(rdx, headSize * KV_BYTES[kv])
  code.multiply(rax, rdx)
  code.load(HELD.keys, at(rdi, ARGUMENT.keys))
  code.load(HELD.values, at(rdi, ARGUMENT.values))
  code.add(HELD.keys, rax)
  code.add(HELD.values, rax)
  // (token · kvHeads + head) · group · D
  code.move(rax, rsi)
  code.multiply(rax, rcx)
  code.add(rax, rbx)
  code.smallConstant(rdx, group * headBytes)
  code.multiply(rax, rdx)
  code.load(HELD.out, at(rdi, ARGUMENT.out))
  code.add(HELD.out, rax)
  // rbx: queries
  code.multiply(rbx, rdx)
  code.load(rax, at(HELD.shape, SHAPE_WORDS.queryStride * 8))
  code.multiply(rsi, rax)
  code.add(rbx, rsi)
  code.load(rax, at(rdi, ARGUMENT.q))
  code.add(rbx, rax)
  if (rotaryHalf > 0) {
    code.load(rax, at(r12, 16))
    code.smallConstant(rcx, rotaryHalf * 4)
    code.multiply(rax, rcx)
    code.load(rdx, at(rdi, ARGUMENT.cos))
    code.load(rsi, at(rdi, ARGUMENT.sin))
    code.add(rdx, rax)
    code.add(rsi, rax)
  }
  const scale = 6
  code.broadcastVector(scale, at(HELD.shape, SHAPE_WORDS.scale * 8))
  for (let head = 0; head < group; head++) {
    writeRotation(code, { headSize, rotaryHalf, from: rbx, cos: rdx, sin: rsi }, (element, vector) => {
      code.multiplyVector(vector, vector, scale)
      code.storeVector(at(rsp, frame.query + head * headBytes + element * 4), vector)
    })
    code.addConstant(rbx, headBytes)
  }
  writeStart(code, shape)
  code.move(HELD.block, HELD.start)
  code.andConstant(HELD.block, -BLOCK_POSITIONS)
  code.addressOfLabel(HELD.table, EXPONENTIAL_TABLE)
}

/**
 * rax: which token, rbx: which key head the index in rsi means; rcx: key heads. A head's tokens one after another find its cached
 * rows in a near cache; the AVX-512 code keeps the order in which it was measured, a token's heads one after another.
 */
function writeTask(code: VectorAssembler): void {
  code.move(rax, rsi)
  if (code.lanes === 16) {
    code.divide(rcx)
    code.move(rbx, rdx)
    return
  }
  code.load(rdx, at(rdi, ARGUMENT.tokens))
  code.load(r8, at(rdx, 0))
  code.divide(r8)
  code.move(rbx, rax)
  code.move(rax, rdx)
}

/** No score seen, nothing summed. */
function writeStart(code: VectorAssembler, shape: AttentionShape): void {
  const frame = attentionFrame(shape)
  writeRemoved(code, 0)
  code.zeroVector(1)
  for (let head = 0; head < shape.group; head++) {
    code.storeVector(at(rsp, frame.largest + head * BLOCK_BYTES), 0)
    code.storeVector(at(rsp, frame.total + head * BLOCK_BYTES), 1)
    for (let element = 0; element < shape.headSize; element += code.lanes) {
      code.storeVector(at(rsp, frame.sums + (head * shape.headSize + element) * 4), 1)
    }
  }
}

/** rax: the block's first key or value, in `base`'s rows. */
function writeBlockAddress(code: VectorAssembler, { headSize, kv }: AttentionShape, base: number): void {
  code.move(rax, HELD.block)
  code.smallConstant(rdx, headSize * KV_BYTES[kv])
  code.multiply(rax, rdx)
  code.add(rax, base)
}

/** scores = q·k, for a block of positions at a time. */
function writeScores(code: VectorAssembler, shape: AttentionShape, chunk: ScoreChunk, index: number): void {
  const { headSize, kv } = shape
  const { heads, chains, query, key, sum } = chunk
  const frame = attentionFrame(shape)
  const vectors = blockVectors(code)
  const eachScore = (act: (head: number, vector: number, i: number) => void): void => {
    for (const [i, head] of heads.entries()) {
      for (let vector = 0; vector < vectors; vector++) {
        act(head, vector, i)
      }
    }
  }
  writeBlockAddress(code, shape, HELD.keys)
  code.move(rdx, rsp)
  code.move(rcx, rdi)
  code.label(`scores ${index}`)
  eachScore((_, vector, i) => {
    for (let chain = 0; chain < chains; chain++) {
      code.zeroVector(sum(i, vector, chain))
    }
  })
  for (let element = 0; element < headSize; element++) {
    for (let vector = 0; vector < vectors; vector++) {
      const position = element * BLOCK_POSITIONS + vector * code.lanes
      loadCached(code, kv, key(element, vector), at(rax, position * KV_BYTES[kv]))
    }
    eachScore((head, vector, i) => {
      const [to, by] = [sum(i, vector, element % chains), key(element, vector)]
      const factor = at(rsp, frame.query + (head * headSize + element) * 4)
      if (query === undefined) {
        code.multiplyAddBroadcast(to, by, factor)
        return
      }
      if (vector === 0) {
        code.broadcastVector(query, factor)
      }
      code.multiplyAddVector(to, by, query)
    })
  }
  eachScore((head, vector, i) => {
    for (let chain = 1; chain < chains; chain++) {
      code.addVector(sum(i, vector, 0), sum(i, vector, 0), sum(i, vector, chain))
    }
    code.storeVector(at(rdx, frame.scores + head * SCORE_BYTES + vector * code.lanes * 4), sum(i, vector, 0))
  })
  code.addConstant(rax, BLOCK_POSITIONS * headSize * KV_BYTES[kv])
  code.addConstant(rdx, BLOCK_BYTES)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(`scores ${index}`)
}

/** Loops over the blocks of a head's scores, and acts on each vector of them; uses rcx and rdx. */
function writeOverScores(
  code: VectorAssembler,
  shape: AttentionShape,
  { head, label }: { head: number; label: string },
  act: (scores: Memory) => void,
): void {
  code.move(rdx, rsp)
  code.move(rcx, rdi)
  code.label(`${label} ${head}`)
  for (const offset of vectorOffsets(code)) {
    act(at(rdx, attentionFrame(shape).scores + head * SCORE_BYTES + offset))
  }
  code.addConstant(rdx, BLOCK_BYTES)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(`${label} ${head}`)
}

/** score = c · tanh(score / c) = c · (1 - 2 / (e^(2·score / c) + 1)), where the layer has a softcap. */
function writeSoftcap(code: VectorAssembler, shape: AttentionShape): void {
  const [score, cap, one, power, sum] = [0, 1, 2, 3, 4] as const
  code.load(rax, at(HELD.shape, SHAPE_WORDS.softcap * 8))
  code.testZero(rax)
  code.jumpIfZero('softcap end')
  code.broadcastVector(cap, at(HELD.shape, SHAPE_WORDS.softcap * 8))
  code.broadcastVector(one, at(HELD.table, ONE_IN_TABLE))
  for (let head = 0; head < shape.group; head++) {
    writeOverScores(code, shape, { head, label: 'softcap' }, (place) => {
      code.loadVector(score, place)
      code.divideVector(score, score, cap)
      code.addVector(score, score, score)
      writeExponential(code, score, HELD.table, [power, sum])
      code.addVector(score, score, one)
      code.addVector(power, one, one)
      code.divideVector(power, power, score)
      code.subtractVector(power, one, power)
      code.multiplyVector(power, power, cap)
      code.storeVector(place, power)
    })
  }
  code.label('softcap end')
}

/** Scores to powers of their difference to the largest so far; earlier sums are to be multiplied by the correction. */
function writeSoftmax(code: VectorAssembler, shape: AttentionShape, head: number): void {
  const frame = attentionFrame(shape)
  const [before, largest, temporary, total, score, power, sum] = [0, 1, 2, 3, 4, 5, 6] as const
  const state = (place: number) => at(rsp, place + head * BLOCK_BYTES)
  code.loadVector(before, state(frame.largest))
  code.loadVector(largest, state(frame.largest))
  writeOverScores(code, shape, { head, label: 'largest' }, (scores) => code.maximumVector(largest, largest, scores))
  acrossLanes(code, largest, temporary, (to, a, b) => code.maximumVector(to, a, b))
  code.storeVector(state(frame.largest), largest)
  code.subtractVector(before, before, largest)
  writeExponential(code, before, HELD.table, [power, sum])
  code.storeVector(state(frame.correction), before)
  code.multiplyVector(total, before, state(frame.total))
  writeOverScores(code, shape, { head, label: 'powers' }, (scores) => {
    code.loadVector(score, scores)
    code.subtractVector(score, score, largest)
    writeExponential(code, score, HELD.table, [power, sum])
    code.storeVector(scores, score)
    code.addVector(total, total, score)
  })
  code.storeVector(state(frame.total), total)
}

/** sums = sums · correction + Σ power · v. */
function writeValues(code: VectorAssembler, shape: AttentionShape, chunk: ValueChunk, index: number): void {
  const { headSize, kv } = shape
  const { heads, parts, value, power, sum } = chunk
  const frame = attentionFrame(shape)
  const place = (head: number, part: number) => at(rsp, frame.sums + (head * headSize + part * code.lanes) * 4)
  for (const [i, head] of heads.entries()) {
    code.loadVector(0, at(rsp, frame.correction + head * BLOCK_BYTES))
    for (const [j, part] of parts.entries()) {
      code.multiplyVector(sum(i, j), 0, place(head, part))
    }
  }
  writeBlockAddress(code, shape, HELD.values)
  code.move(rdx, rsp)
  code.move(rcx, rbx)
  code.label(`values ${index}`)
  for (const [i, head] of heads.entries()) {
    code.broadcastVector(power(i), at(rdx, frame.scores + head * SCORE_BYTES))
  }
  for (const [j, part] of parts.entries()) {
    loadCached(code, kv, value(j), at(rax, part * code.lanes * KV_BYTES[kv]))
    for (const i of heads.keys()) {
      code.multiplyAddVector(sum(i, j), power(i), value(j))
    }
  }
  code.addConstant(rax, headSize * KV_BYTES[kv])
  code.addConstant(rdx, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(`values ${index}`)
  for (const [i, head] of heads.entries()) {
    for (const [j, part] of parts.entries()) {
      code.storeVector(place(head, part), sum(i, j))
    }
  }
}

function writeOutput(code: VectorAssembler, shape: AttentionShape): void {
  const { headSize, group } = shape
  const frame = attentionFrame(shape)
  const [total, temporary, one] = [0, 1, 2] as const
  for (let head = 0; head < group; head++) {
    code.loadVector(total, at(rsp, frame.total + head * BLOCK_BYTES))
    acrossLanes(code, total, temporary, (to, a, b) => code.addVector(to, a, b))
    code.broadcastVector(one, at(HELD.table, ONE_IN_TABLE))
    code.divideVector(total, one, total)
    for (let element = 0; element < headSize; element += code.lanes) {
      code.multiplyVector(temporary, total, at(rsp, frame.sums + (head * headSize + element) * 4))
      code.storeVector(at(HELD.out, (head * headSize + element) * 4), temporary)
    }
  }
}

function loadCached(code: VectorAssembler, kv: AttentionShape['kv'], to: number, from: Memory): void {
  kv === 'f32' ? code.loadVector(to, from) : code.loadHalves(to, from)
}
