/**
 * The machine code of the operator `ringlet.LoraDelta`: for each row of a decode batch, `out = base + B·(A·x)` with that
 * row's own adapter, read once, in whatever form it was packed (`kernel-layout.ts`). x86-64, System V calling convention.
 *
 * Rows are independent and each is computed by the same instructions in the same order, so a row's bits do not depend on
 * its batch mates. ONNX Runtime's own thread pool takes the rows (`KernelContext_ParallelFor`).
 */

import type { OrtLibrary } from '../library.ts'
import { at, REG } from '../machine-code/assembler.ts'
import type { Avx2Assembler } from '../machine-code/avx2.ts'
import {
  type OpDescription,
  writeApiTable,
  writeInputAddress,
  writeOutputAddress,
  writeParallelFor,
} from '../machine-code/custom-op.ts'
import {
  type KernelWeights,
  OUT_TAIL,
  OUTS_PER_BLOCK,
  RANKS_PER_BLOCK,
  ROW_HEADER_WORDS,
  SCRATCH_RANKS,
} from './kernel-layout.ts'

export const LORA_DESCRIPTION: OpDescription = {
  name: 'LoraDelta',
  inputs: ['float', 'float', 'int64', 'int64'],
  outputs: ['float'],
}

/** Bytes of a weight, and of the floats beside them. */
const WEIGHT_BYTES = { f32: 4, int8: 1 } as const
const LANES = 8

/** Places in `compute`'s frame, from rsp: five pointers that `row` gets as its argument, then the output's shape. */
const FRAME = { bytes: 0x90, value: 0, base: 0x20, x: 0x28, rows: 0x30, shape: 0x38, out: 0x40, outputShape: 0x60 }
/** The same five as `row` sees them. */
const ARGUMENT = { base: 0, x: 8, rows: 16, shape: 24, out: 32 }

export function writeLoraKernel(code: Avx2Assembler, library: OrtLibrary, weights: KernelWeights): void {
  compute(code, library)
  row(code, weights)
}

/**
 * `compute(kernel, context)`: inputs base `[…, N]`, x `[…, K]`, rows int64 `[3 + rows]` (their count, the output's first two
 * sizes, then each one's adapter), shape int64 `[3]` (K, N, offset of this group in an adapter's table); output `[a, b, N]`.
 */
function compute(code: Avx2Assembler, library: OrtLibrary): void {
  const { rax, rdx, rbx, rsp, rbp, rsi, r12, r13, r14 } = REG
  const places = { context: r12, api: r13, scratch: FRAME.value }
  const saved = [rbp, rbx, r12, r13, r14]
  code.align(16)
  code.label('compute')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, FRAME.bytes)
  code.move(r12, rsi)
  writeApiTable(code, library, r13)
  for (const [index, place] of [FRAME.base, FRAME.x, FRAME.rows, FRAME.shape].entries()) {
    writeInputAddress(code, places, index, place)
  }
  code.load(rdx, at(rsp, FRAME.rows))
  code.load(rax, at(rdx, 8))
  code.store(at(rsp, FRAME.outputShape), rax)
  code.load(rax, at(rdx, 16))
  code.store(at(rsp, FRAME.outputShape + 8), rax)
  code.load(rax, at(rsp, FRAME.shape))
  code.load(rax, at(rax, 8))
  code.store(at(rsp, FRAME.outputShape + 16), rax)
  writeOutputAddress(code, places, { index: 0, shape: FRAME.outputShape, dimensions: 3, place: FRAME.out })
  code.load(rdx, at(rsp, FRAME.rows))
  code.load(rdx, at(rdx))
  writeParallelFor(code, places, 'row', FRAME.base)
  code.addConstant(rsp, FRAME.bytes)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `row(argument, index)`: one row. rbx: the adapter's group record; r9: K; r12: x; r14: out; the stack holds `A·x`. */
function row(code: Avx2Assembler, weights: KernelWeights): void {
  const { rax, rbx, rcx, rdx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 } = REG
  const scratch = SCRATCH_RANKS * 4 + 8
  const saved = [rbp, rbx, r12, r13, r14, r15]
  code.align(16)
  code.label('row')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, scratch)
  code.load(r8, at(rdi, ARGUMENT.shape))
  code.load(r9, at(r8, 0))
  code.load(r10, at(r8, 8))
  code.load(r11, at(r8, 16))
  code.load(rax, at(rdi, ARGUMENT.rows))
  code.load(rbx, { base: rax, offset: ROW_HEADER_WORDS * 8, index: rsi, scale: 8 })
  const rowOf = (to: number, tensor: number, width: number) => {
    code.move(rax, rsi)
    code.multiply(rax, width)
    code.shiftLeft(rax, 2)
    code.load(to, at(rdi, tensor))
    code.add(to, rax)
  }
  rowOf(r12, ARGUMENT.x, r9)
  rowOf(r13, ARGUMENT.base, r10)
  rowOf(r14, ARGUMENT.out, r10)

  // out = base
  code.move(rcx, r10)
  code.move(rdx, r14)
  code.label('copy')
  code.loadVector(0, at(r13))
  code.storeVector(at(rdx), 0)
  code.addConstant(r13, LANES * 4)
  code.addConstant(rdx, LANES * 4)
  code.subtractConstant(rcx, LANES)
  code.jumpIfNotZero('copy')
  code.testZero(rbx)
  code.jumpIfZero('done')
  code.add(rbx, r11)

  // scratch = scale · (A·x), sixteen ranks at a time
  code.load(r15, at(rbx, 0))
  code.load(rbp, at(rbx, 8))
  code.load(r8, at(rbx, 16))
  code.move(rdi, rsp)
  code.testZero(rbp)
  code.jumpIfZero('done')
  code.label('ranks')
  project(code, weights)
  code.addConstant(rdi, RANKS_PER_BLOCK * 4)
  code.addConstant(r8, RANKS_PER_BLOCK * 4)
  code.subtractConstant(rbp, 1)
  code.jumpIfNotZero('ranks')

  // out += B·scratch, segment by segment
  code.load(rbp, at(rbx, 24))
  code.addConstant(rbx, 32)
  code.label('segment')
  code.load(r8, at(rbx, 0))
  code.add(r8, rsp)
  code.load(r11, at(rbx, 8))
  code.load(rdi, at(rbx, 16))
  code.add(rdi, r14)
  code.load(r15, at(rbx, 32))
  code.load(rsi, at(rbx, 40))
  code.load(r10, at(rbx, 24))
  expand(code, weights, 'block', OUTS_PER_BLOCK)
  code.load(r10, at(rbx, 48))
  expand(code, weights, 'tail', OUT_TAIL)
  code.addConstant(rbx, 56)
  code.subtractConstant(rbp, 1)
  code.jumpIfNotZero('segment')

  code.label('done')
  code.zeroUpper()
  code.addConstant(rsp, scratch)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `sum += broadcast · weights[base + offset …]`, eight weights; `temporary` holds them widened. */
function multiplyWeights(
  code: Avx2Assembler,
  weights: KernelWeights,
  operands: { sum: number; broadcast: number; base: number; offset: number; temporary: number },
): void {
  const { sum, broadcast, base, offset, temporary } = operands
  if (weights === 'f32') {
    code.multiplyAddVector(sum, broadcast, at(base, offset))
    return
  }
  code.widenBytes(temporary, at(base, offset))
  code.intToFloat(temporary, temporary)
  code.multiplyAddVector(sum, broadcast, temporary)
}

/** Sixteen ranks of A times x; four steps of K at once, so that eight independent sums hide the multiply-add's latency. */
function project(code: Avx2Assembler, weights: KernelWeights): void {
  const { rcx, rdx, rdi, r8, r9, r12, r15 } = REG
  const stepsAtOnce = 4
  const perStep = RANKS_PER_BLOCK / LANES
  const stepBytes = RANKS_PER_BLOCK * WEIGHT_BYTES[weights]
  for (let sum = 0; sum < stepsAtOnce * perStep; sum++) {
    code.zeroVector(sum)
  }
  code.move(rcx, r9)
  code.move(rdx, r12)
  code.label('inputs')
  for (let step = 0; step < stepsAtOnce; step++) {
    const broadcast = 8 + (step & 1)
    code.broadcastVector(broadcast, at(rdx, 4 * step))
    for (let part = 0; part < perStep; part++) {
      const sum = step * perStep + part
      const offset = step * stepBytes + part * LANES * WEIGHT_BYTES[weights]
      multiplyWeights(code, weights, { sum, broadcast, base: r15, offset, temporary: 10 + (sum & 3) })
    }
  }
  code.addConstant(r15, stepsAtOnce * stepBytes)
  code.addConstant(rdx, stepsAtOnce * 4)
  code.subtractConstant(rcx, stepsAtOnce)
  code.jumpIfNotZero('inputs')
  for (let part = 0; part < perStep; part++) {
    for (let step = 1; step < stepsAtOnce; step++) {
      code.addVector(part, part, step * perStep + part)
    }
    code.multiplyVector(part, part, at(r8, part * LANES * 4))
    code.storeVector(at(rdi, part * LANES * 4), part)
  }
}

/** r10 blocks of `width` outputs: B's block is `[rank][width]`; r11 is the rank, r8 the scratch, rsi the outputs' scales. */
function expand(code: Avx2Assembler, weights: KernelWeights, label: string, width: number): void {
  const { rcx, rdx, rdi, rsi, r8, r10, r11, r15 } = REG
  const vectors = width / LANES
  code.testZero(r10)
  code.jumpIfZero(`${label} end`)
  code.label(label)
  for (let vector = 0; vector < vectors; vector++) {
    code.zeroVector(vector)
  }
  code.move(rcx, r11)
  code.move(rdx, r8)
  code.label(`${label} ranks`)
  code.broadcastVector(8, at(rdx))
  for (let vector = 0; vector < vectors; vector++) {
    const offset = vector * LANES * WEIGHT_BYTES[weights]
    multiplyWeights(code, weights, { sum: vector, broadcast: 8, base: r15, offset, temporary: 9 + (vector & 3) })
  }
  code.addConstant(r15, width * WEIGHT_BYTES[weights])
  code.addConstant(rdx, 4)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero(`${label} ranks`)
  for (let vector = 0; vector < vectors; vector++) {
    const place = vector * LANES * 4
    if (weights === 'int8') {
      code.multiplyVector(vector, vector, at(rsi, place))
    }
    code.addVector(vector, vector, at(rdi, place))
    code.storeVector(at(rdi, place), vector)
  }
  code.addConstant(rdi, width * 4)
  code.addConstant(rsi, width * 4)
  code.subtractConstant(r10, 1)
  code.jumpIfNotZero(label)
  code.label(`${label} end`)
}
