/**
 * The machine code of the operator `Attention…`: rotary embedding of q and k, writing k and v into the cache, and softmax(q·kᵀ)·v
 * over each token's own row, decode batches and prefill chunks alike. x86-64 with AVX-512, or AVX2
 * with FMA and F16C.
 *
 * A token and key head is a task; a task's instructions do not depend on what else runs, so neither do its bits.
 */

import type { OrtLibrary } from '../library.ts'
import { at, REG } from '../machine-code/assembler.ts'
import {
  type OpDescription,
  type OpType,
  writeApiTable,
  writeInputAddress,
  writeOutputAddress,
  writeParallelFor,
} from '../machine-code/custom-op.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { writeExponentialTable } from '../machine-code/vector-math.ts'
import { EXPONENTIAL_TABLE, writeAttend } from './attend-code.ts'
import {
  type AttentionShape,
  BLOCK_POSITIONS,
  KV_BYTES,
  SHAPE_WORDS,
  TOKEN_HEADER_WORDS,
  TOKEN_WORDS,
} from './attention-layout.ts'
import { ARGUMENT, writeRotation } from './attention-parts.ts'
import { writeMaskTable } from './score-masks.ts'

export function attentionDescription({ headSize, group, rotaryHalf, kv }: AttentionShape): OpDescription {
  const cache: OpType = kv === 'f32' ? 'float' : 'float16'
  const tables: OpType[] = rotaryHalf === 0 ? [] : ['float', 'float']
  return {
    name: `AttentionD${headSize}G${group}R${rotaryHalf}${kv}`,
    inputs: ['float', 'float', 'float', cache, cache, 'int64', 'int64', ...tables],
    outputs: ['float'],
  }
}

/** From rsp: a word for calls, then what the functions get as their argument, then the output's shape. */
const FRAME = { scratch: 0, argument: 0x20, shape: 0x80, bytes: 0xa8 }
/** Up to so many tokens' keys and values are written by the calling thread: waking another costs more. */
const STORED_INLINE = 16

export function writeAttentionKernel(code: VectorAssembler, library: OrtLibrary, shape: AttentionShape): void {
  writeCompute(code, library, shape)
  writeStore(code, shape)
  writeAttend(code, shape)
  writeExponentialTable(code, EXPONENTIAL_TABLE)
  writeMaskTable(code)
}

/**
 * Inputs: q, k, v (each with a stride, so that all may lie in one tensor), keys, values (the whole cache), tokens, shape, and the
 * rotary tables. Output `[a, b, heads · D]`.
 */
function writeCompute(
  code: VectorAssembler,
  library: OrtLibrary,
  { headSize, group, rotaryHalf }: AttentionShape,
): void {
  const { rax, rbx, rdx, rsp, rbp, rsi, rdi, r12, r13, r14, r15 } = REG
  const places = { context: r12, api: r13, scratch: FRAME.scratch }
  const saved = [rbp, rbx, r12, r13, r14, r15]
  const argument = (offset: number): number => FRAME.argument + offset
  code.align(16)
  code.label('compute')
  for (const register of saved) {
    code.push(register)
  }
  // With six registers and the return address: calls stay aligned.
  code.subtractConstant(rsp, FRAME.bytes)
  code.move(r12, rsi)
  writeApiTable(code, library, r13)
  const inputs = [ARGUMENT.q, ARGUMENT.k, ARGUMENT.v, ARGUMENT.keys, ARGUMENT.values, ARGUMENT.tokens, ARGUMENT.shape]
  for (const [index, offset] of [...inputs, ...(rotaryHalf === 0 ? [] : [ARGUMENT.cos, ARGUMENT.sin])].entries()) {
    writeInputAddress(code, places, index, argument(offset))
  }
  code.load(rdx, at(rsp, argument(ARGUMENT.tokens)))
  code.load(r14, at(rdx, 0))
  code.load(rax, at(rdx, 8))
  code.store(at(rsp, FRAME.shape), rax)
  code.load(rax, at(rdx, 16))
  code.store(at(rsp, FRAME.shape + 8), rax)
  code.load(rdx, at(rsp, argument(ARGUMENT.shape)))
  code.load(r15, at(rdx, SHAPE_WORDS.kvHeads * 8))
  code.smallConstant(rax, group * headSize)
  code.multiply(rax, r15)
  code.store(at(rsp, FRAME.shape + 16), rax)
  writeOutputAddress(code, places, { index: 0, shape: FRAME.shape, dimensions: 3, place: argument(ARGUMENT.out) })

  code.testZero(r14)
  code.jumpIfZero('compute end')
  code.compareConstant(r14, STORED_INLINE + 1)
  code.jumpIfBelow('store inline')
  code.move(rdx, r14)
  writeParallelFor(code, places, 'store', FRAME.argument)
  code.jump('stored')
  code.label('store inline')
  code.move(rbx, r14)
  code.label('store next')
  code.subtractConstant(rbx, 1)
  code.address(rdi, at(rsp, FRAME.argument))
  code.move(rsi, rbx)
  code.callLabel('store')
  code.testZero(rbx)
  code.jumpIfNotZero('store next')
  code.label('stored')
  code.move(rdx, r14)
  code.multiply(rdx, r15)
  writeParallelFor(code, places, 'attend', FRAME.argument)
  code.label('compute end')
  code.addConstant(rsp, FRAME.bytes)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `store(argument, token)`: its key, rotated, and its value into the cache. */
function writeStore(code: VectorAssembler, { headSize, rotaryHalf, kv }: AttentionShape): void {
  const { rax, rbx, rcx, rdx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = REG
  const saved = [rbp, rbx, r12, r13, r14, r15]
  const bytes = KV_BYTES[kv]
  code.align(16)
  code.label('store')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, headSize * 4)
  code.load(r15, at(rdi, ARGUMENT.shape))
  // r12: the token's words; r10: its position
  code.load(r12, at(rdi, ARGUMENT.tokens))
  code.move(rax, rsi)
  code.smallConstant(rcx, TOKEN_WORDS * 8)
  code.multiply(rax, rcx)
  code.add(r12, rax)
  code.addConstant(r12, TOKEN_HEADER_WORDS * 8)
  code.load(r10, at(r12, 8))
  const source = (to: number, tensor: number, stride: number, offset: number): void => {
    code.move(rax, rsi)
    code.load(rcx, at(r15, stride * 8))
    code.multiply(rax, rcx)
    code.load(to, at(rdi, tensor))
    code.add(to, rax)
    code.load(rcx, at(r15, offset * 8))
    code.add(to, rcx)
  }
  source(r13, ARGUMENT.k, SHAPE_WORDS.keyStride, SHAPE_WORDS.keyOffset)
  source(r14, ARGUMENT.v, SHAPE_WORDS.valueStride, SHAPE_WORDS.valueOffset)
  // r11: bytes of a head's row; rax: bytes before this row
  code.load(r11, at(r15, SHAPE_WORDS.maxPositions * 8))
  code.smallConstant(rcx, headSize * bytes)
  code.multiply(r11, rcx)
  code.load(rax, at(r12, 0))
  code.load(rcx, at(r15, SHAPE_WORDS.kvHeads * 8))
  code.multiply(rax, rcx)
  code.multiply(rax, r11)
  code.load(r8, at(rdi, ARGUMENT.keys))
  code.load(r9, at(rdi, ARGUMENT.values))
  code.add(r8, rax)
  code.add(r9, rax)
  code.move(rax, r10)
  code.smallConstant(rcx, headSize * bytes)
  code.multiply(rax, rcx)
  code.add(r9, rax)
  code.move(rax, r10)
  code.andConstant(rax, -BLOCK_POSITIONS)
  code.multiply(rax, rcx)
  code.add(r8, rax)
  code.move(rax, r10)
  code.andConstant(rax, BLOCK_POSITIONS - 1)
  code.shiftLeft(rax, Math.log2(bytes))
  code.add(r8, rax)
  if (rotaryHalf > 0) {
    // rdx, rsi: cos and sin of this token
    code.load(rax, at(r12, 16))
    code.smallConstant(rcx, rotaryHalf * 4)
    code.multiply(rax, rcx)
    code.load(rdx, at(rdi, ARGUMENT.cos))
    code.load(rsi, at(rdi, ARGUMENT.sin))
    code.add(rdx, rax)
    code.add(rsi, rax)
  }
  code.load(rbx, at(r15, SHAPE_WORDS.kvHeads * 8))
  const keep = (base: number, element: number, vector: number): void =>
    kv === 'f32'
      ? code.storeVector(at(base, element * bytes), vector)
      : code.storeHalves(at(base, element * bytes), vector)
  code.label('store head')
  writeRotation(code, { headSize, rotaryHalf, from: r13, cos: rdx, sin: rsi }, (element, vector) =>
    keep(rsp, element, vector),
  )
  for (let element = 0; element < headSize; element += code.lanes) {
    code.loadVector(0, at(r14, element * 4))
    keep(r9, element, 0)
  }
  for (let element = 0; element < headSize; element++) {
    const to = at(r8, element * BLOCK_POSITIONS * bytes)
    if (kv === 'f32') {
      code.loadHalf(rax, at(rsp, element * bytes))
      code.storeHalf(to, rax)
    } else {
      code.loadQuarter(rax, at(rsp, element * bytes))
      code.storeQuarter(to, rax)
    }
  }
  code.addConstant(r13, headSize * 4)
  code.addConstant(r14, headSize * 4)
  code.add(r8, r11)
  code.add(r9, r11)
  code.subtractConstant(rbx, 1)
  code.jumpIfNotZero('store head')
  code.zeroUpper()
  code.addConstant(rsp, headSize * 4)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}
