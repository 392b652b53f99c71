/**
 * The machine code of the operator `LinearInt8K<inputs>`: `y = x·Wᵀ` with W in int8 (`linear-layout.ts`), x quantised to int8 in
 * blocks of 32, each token by itself. x86-64 with AVX-512 VNNI.
 *
 * A token's numbers come from the same instructions in the same order however many tokens run beside it, so its bits do not
 * depend on its batch mates. Tiles go to ONNX Runtime's own pool; a tile's weights are read from memory once for all tokens.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'
import type { OrtLibrary } from '../library.ts'
import { at, REG } from '../machine-code/assembler.ts'
import type { Avx512Assembler } from '../machine-code/avx512.ts'
import {
  type OpDescription,
  writeApiTable,
  writeInputAddress,
  writeOutputAddress,
  writeParallelFor,
} from '../machine-code/custom-op.ts'
import { acrossLanes } from '../machine-code/vector-math.ts'
import { CODE_BYTES, GROUP_INPUTS, TILE_BLOCK_BYTES, TILE_OUTPUTS } from './linear-layout.ts'

/**
 * Inputs: x `[…, K]`; W in tiles; shape int64 `[2]` (K, N); sizes int64 `[3]` (tokens, and the output's first two sizes).
 * Outputs: y `[a, b, N]`, and working memory.
 */
export function linearDescription(inputs: number): OpDescription {
  return {
    name: `LinearInt8K${inputs}`,
    inputs: ['float', 'uint8', 'int64', 'int64'],
    outputs: ['float', 'uint8'],
  }
}

/** Tokens that share a pass over a tile; the rest runs in smaller passes. */
const TOKENS_AT_ONCE = [8, 4, 2, 1] as const
/** Up to so many tokens are quantised by the calling thread: waking another costs more. */
const QUANTISED_INLINE = 16

/** From rsp: a word for calls, the six addresses that the functions below get as their argument, then shapes. */
const FRAME = { bytes: 0xb0, scratch: 0, x: 0x20, weights: 0x28, shape: 0x30, sizes: 0x38, out: 0x40, work: 0x48 }
const SHAPE = { out: 0x60, work: 0x80 }
/** The addresses as those functions see them. */
const ARGUMENT = { x: 0, weights: 8, shape: 16, sizes: 24, out: 32, work: 40 }

/** Working memory of a token: K codes, a float32 scale a block, and -128 · Σ codes a block as int32. */
function workBytes(inputs: number): number {
  return inputs + (inputs / QUANTISED_BLOCK) * 8
}

export function writeLinearKernel(code: Avx512Assembler, library: OrtLibrary, inputs: number): void {
  writeCompute(code, library, inputs)
  writeQuantise(code, inputs)
  writeTile(code, inputs)
}

function writeCompute(code: Avx512Assembler, library: OrtLibrary, inputs: number): void {
  const { rax, rbx, rdx, rsp, rbp, rsi, rdi, r12, r13, r14, r15 } = REG
  const places = { context: r12, api: r13, scratch: FRAME.scratch }
  const saved = [rbp, rbx, r12, r13, r14, r15]
  code.align(16)
  code.label('compute')
  for (const register of saved) {
    code.push(register)
  }
  // Six registers and the return address: the frame's 8 bytes more keep calls aligned.
  code.subtractConstant(rsp, FRAME.bytes + 8)
  code.move(r12, rsi)
  writeApiTable(code, library, r13)
  for (const [index, place] of [FRAME.x, FRAME.weights, FRAME.shape, FRAME.sizes].entries()) {
    writeInputAddress(code, places, index, place)
  }
  code.load(rdx, at(rsp, FRAME.sizes))
  code.load(r14, at(rdx, 0))
  code.load(rax, at(rdx, 8))
  code.store(at(rsp, SHAPE.out), rax)
  code.load(rax, at(rdx, 16))
  code.store(at(rsp, SHAPE.out + 8), rax)
  code.load(rdx, at(rsp, FRAME.shape))
  code.load(r15, at(rdx, 8))
  code.store(at(rsp, SHAPE.out + 16), r15)
  writeOutputAddress(code, places, { index: 0, shape: SHAPE.out, dimensions: 3, place: FRAME.out })
  code.smallConstant(rax, workBytes(inputs))
  code.multiply(rax, r14)
  code.store(at(rsp, SHAPE.work), rax)
  writeOutputAddress(code, places, { index: 1, shape: SHAPE.work, dimensions: 1, place: FRAME.work })

  code.testZero(r14)
  code.jumpIfZero('compute end')
  code.compareConstant(r14, QUANTISED_INLINE + 1)
  code.jumpIfBelow('quantise inline')
  code.move(rdx, r14)
  writeParallelFor(code, places, 'quantise', FRAME.x)
  code.jump('quantised')
  code.label('quantise inline')
  code.move(rbx, r14)
  code.label('quantise next')
  code.subtractConstant(rbx, 1)
  code.address(rdi, at(rsp, FRAME.x))
  code.move(rsi, rbx)
  code.callLabel('quantise')
  code.testZero(rbx)
  code.jumpIfNotZero('quantise next')
  code.label('quantised')

  code.move(rdx, r15)
  code.shiftRight(rdx, Math.log2(TILE_OUTPUTS))
  writeParallelFor(code, places, 'tile', FRAME.x)
  code.label('compute end')
  code.addConstant(rsp, FRAME.bytes + 8)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `quantise(argument, token)`: x to codes with 127 at each block's largest magnitude. */
function writeQuantise(code: Avx512Assembler, inputs: number): void {
  const { rax, rcx, rdx, rsi, rdi, r8 } = REG
  const [low, high, largest, other, one, sign, tiny, most] = [0, 1, 2, 3, 4, 5, 6, 7] as const
  const blocks = inputs / QUANTISED_BLOCK
  code.align(16)
  code.label('quantise')
  code.move(rax, rsi)
  code.smallConstant(rcx, inputs * 4)
  code.multiply(rax, rcx)
  code.load(rdx, at(rdi, ARGUMENT.x))
  code.add(rdx, rax)
  code.smallConstant(rcx, workBytes(inputs))
  code.multiply(rsi, rcx)
  code.load(r8, at(rdi, ARGUMENT.work))
  code.add(r8, rsi)
  const constant = (vector: number, bits: number): void => {
    code.smallConstant(rax, bits)
    code.broadcastRegister(vector, rax)
  }
  constant(sign, 0x7fffffff)
  constant(tiny, floatBits(1e-30))
  constant(most, floatBits(127))
  constant(one, floatBits(1 / 127))
  code.move(rsi, r8)
  code.addConstant(rsi, inputs)
  code.smallConstant(rcx, blocks)
  code.label('quantise block')
  code.loadWide(low, at(rdx, 0))
  code.loadWide(high, at(rdx, 64))
  code.andWide(largest, low, sign)
  code.andWide(other, high, sign)
  code.maximumWide(largest, largest, other)
  acrossLanes(code, largest, other, (to, a, b) => code.maximumWide(to, a, b))
  // A block of zeros gets a scale that changes nothing.
  code.maximumWide(largest, largest, tiny)
  code.multiplyWide(other, largest, one)
  code.storeFloat(at(rsi, 0), other)
  code.divideWide(other, most, largest)
  code.multiplyWide(low, low, other)
  code.multiplyWide(high, high, other)
  code.floatToIntWide(low, low)
  code.floatToIntWide(high, high)
  code.narrowToBytes(at(r8, 0), low)
  code.narrowToBytes(at(r8, QUANTISED_BLOCK / 2), high)
  code.addIntWide(low, low, high)
  acrossLanes(code, low, high, (to, a, b) => code.addIntWide(to, a, b))
  // Weights' codes are 128 too large.
  code.shiftLeftWide(low, low, 7)
  code.zeroWide(high)
  code.subtractIntWide(high, high, low)
  code.storeFloat(at(rsi, blocks * 4), high)
  code.addConstant(rdx, QUANTISED_BLOCK * 4)
  code.addConstant(r8, QUANTISED_BLOCK)
  code.addConstant(rsi, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('quantise block')
  code.zeroUpper()
  code.ret()
}

/** `tile(argument, index)`: sixteen outputs of all tokens. r8: the tile's weights; r9: outputs; rdi: codes; rcx: tokens left. */
function writeTile(code: Avx512Assembler, inputs: number): void {
  const { rax, rbx, rcx, rsi, rdi, r8, r9, r10 } = REG
  const tileBytes = (inputs / QUANTISED_BLOCK) * TILE_BLOCK_BYTES
  code.align(16)
  code.label('tile')
  code.push(rbx)
  code.load(rax, at(rdi, ARGUMENT.shape))
  code.load(r10, at(rax, 8))
  code.shiftLeft(r10, 2)
  code.load(rax, at(rdi, ARGUMENT.sizes))
  code.load(rcx, at(rax, 0))
  code.load(r9, at(rdi, ARGUMENT.out))
  code.move(rax, rsi)
  code.shiftLeft(rax, Math.log2(TILE_OUTPUTS * 4))
  code.add(r9, rax)
  code.smallConstant(rax, tileBytes)
  code.multiply(rsi, rax)
  code.load(r8, at(rdi, ARGUMENT.weights))
  code.add(r8, rsi)
  code.load(rdi, at(rdi, ARGUMENT.work))
  for (const tokens of TOKENS_AT_ONCE) {
    const next = `fewer than ${tokens}`
    code.label(`tokens ${tokens}`)
    code.compareConstant(rcx, tokens)
    code.jumpIfBelow(next)
    writePass(code, inputs, tokens)
    code.addConstant(rdi, tokens * workBytes(inputs))
    code.subtractConstant(rcx, tokens)
    if (tokens === TOKENS_AT_ONCE[0]) {
      code.jump(`tokens ${tokens}`)
    }
    code.label(next)
  }
  code.zeroUpper()
  code.pop(rbx)
  code.ret()
}

/** One tile times some tokens; leaves r9 behind the outputs it wrote. */
function writePass(code: Avx512Assembler, inputs: number, tokens: number): void {
  const { rax, rbx, rdx, rdi, r8, r9, r10, r11 } = REG
  const each = Array.from({ length: tokens }, (_, token) => token)
  const sum = (token: number): number => 16 + token
  const whole = (token: number): number => 8 + token
  const scales = 4
  const stride = workBytes(inputs)
  const blocks = inputs / QUANTISED_BLOCK
  for (const token of each) {
    code.zeroWide(sum(token))
  }
  code.move(rax, r8)
  code.move(rdx, rdi)
  code.move(rbx, rdi)
  code.addConstant(rbx, inputs)
  code.smallConstant(r11, blocks)
  code.label(`pass ${tokens}`)
  for (const token of each) {
    code.broadcastWide(whole(token), at(rbx, token * stride + blocks * 4))
  }
  for (let group = 0; group < QUANTISED_BLOCK / GROUP_INPUTS; group++) {
    const weights = group % scales
    code.loadWide(weights, at(rax, group * TILE_OUTPUTS * GROUP_INPUTS))
    for (const token of each) {
      code.dotBytesBroadcast(whole(token), weights, at(rdx, token * stride + group * GROUP_INPUTS))
    }
  }
  code.loadWide(scales, at(rax, CODE_BYTES))
  for (const token of each) {
    code.intToFloatWide(whole(token), whole(token))
    code.multiplyWide(whole(token), whole(token), scales)
    code.multiplyAddBroadcast(sum(token), whole(token), at(rbx, token * stride))
  }
  code.addConstant(rax, TILE_BLOCK_BYTES)
  code.addConstant(rdx, QUANTISED_BLOCK)
  code.addConstant(rbx, 4)
  code.subtractConstant(r11, 1)
  code.jumpIfNotZero(`pass ${tokens}`)
  for (const token of each) {
    code.storeWide(at(r9), sum(token))
    code.add(r9, r10)
  }
}

function floatBits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0]!
}
