/**
 * The machine code of the operator `LinearInt8K<inputs>`: `y = x·Wᵀ` with W in int8 (`linear-layout.ts`), x quantised to int8 in
 * blocks of 32, each token by itself; with what a decoder has around its products: the norm before them, bias, a sum that the
 * product joins, the gate of a feed-forward branch, and what each token's adapter adds. x86-64 with AVX-512 VNNI
 * or AVX2.
 *
 * A token's numbers come from the same instructions in the same order however many tokens run beside it, so its bits do not
 * depend on its batch mates. Tiles go to ONNX Runtime's own pool; a tile's weights are read from memory once for all tokens.
 */

import type { OrtLibrary } from '../library.ts'
import { at, REG } from '../machine-code/assembler.ts'
import {
  type OpDescription,
  writeApiTable,
  writeInputAddress,
  writeOptionalInputAddress,
  writeOutputAddress,
  writeParallelFor,
} from '../machine-code/custom-op.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { writeExponentialTable } from '../machine-code/vector-math.ts'
import { ACTIVATIONS, ARGUMENT, SHAPE_WORDS, TILE_OUTPUTS, workLayout } from './linear-layout.ts'
import { writeQuantise } from './quantise-code.ts'
import { EXPONENTIAL_TABLE, writeTile } from './tile-code.ts'

/**
 * Inputs: x `[…, K]`; shape, int64 (`SHAPE_WORDS`); sizes int64 `[3]` (tokens, and the output's first two sizes). May be left out:
 * W in tiles; norm `[K]`, of an RMSNorm of x; bias `[N]`; addTo, as the output, which is added to it; rows int64, a header of three
 * and the adapter's table of each token, or 0; base `[…, N]` in place of W's product and the bias; an earlier product's working
 * memory, never read: ONNX Runtime frees what had a reader, and would keep what had none until the run's end. Outputs: y `[a, b, N]`,
 * or half of N after a gate; and working memory.
 */
export function linearDescription(inputs: number): OpDescription {
  return {
    name: `LinearInt8K${inputs}`,
    inputs: ['float', 'int64', 'int64', 'uint8', 'float', 'float', 'float', 'int64', 'float', 'uint8'],
    optionalInputs: 7,
    outputs: ['float', 'uint8'],
  }
}

/** Up to so many tokens are quantised by the calling thread: waking another costs more. */
const QUANTISED_INLINE = 16

/** From rsp: a word for calls, the argument of the functions below, then the outputs' shapes. */
const FRAME = { scratch: 0, argument: 0x20, outShape: 0x80, workShape: 0xa0, bytes: 0xb0 }
const REQUIRED_INPUTS = [ARGUMENT.x, ARGUMENT.shape, ARGUMENT.sizes]
const OPTIONAL_INPUTS = [ARGUMENT.weights, ARGUMENT.norm, ARGUMENT.bias, ARGUMENT.addTo, ARGUMENT.rows, ARGUMENT.base]

export function writeLinearKernel(code: VectorAssembler, library: OrtLibrary, inputs: number): void {
  writeCompute(code, library, inputs)
  writeQuantise(code, inputs)
  writeTile(code, inputs)
  writeExponentialTable(code, EXPONENTIAL_TABLE)
}

function writeCompute(code: VectorAssembler, library: OrtLibrary, inputs: number): void {
  const { rax, rbx, rdx, rsp, rbp, rsi, rdi, r12, r13, r14, r15 } = REG
  const places = { context: r12, api: r13, scratch: FRAME.scratch }
  const saved = [rbp, rbx, r12, r13, r14, r15]
  const argument = (offset: number): number => FRAME.argument + offset
  code.align(16)
  code.label('compute')
  for (const register of saved) {
    code.push(register)
  }
  // Six registers and the return address: the frame's 8 bytes more keep calls aligned.
  code.subtractConstant(rsp, FRAME.bytes + 8)
  code.move(r12, rsi)
  writeApiTable(code, library, r13)
  for (const [index, offset] of REQUIRED_INPUTS.entries()) {
    writeInputAddress(code, places, index, argument(offset))
  }
  for (const [index, offset] of OPTIONAL_INPUTS.entries()) {
    writeOptionalInputAddress(code, places, REQUIRED_INPUTS.length + index, argument(offset))
  }
  // r14: tokens; r15: tiles of the output
  code.load(rdx, at(rsp, argument(ARGUMENT.sizes)))
  code.load(r14, at(rdx, 0))
  code.load(rax, at(rdx, 8))
  code.store(at(rsp, FRAME.outShape), rax)
  code.load(rax, at(rdx, 16))
  code.store(at(rsp, FRAME.outShape + 8), rax)
  code.load(rdx, at(rsp, argument(ARGUMENT.shape)))
  code.load(r15, at(rdx, SHAPE_WORDS.outputs * 8))
  code.load(rax, at(rdx, SHAPE_WORDS.activation * 8))
  code.compareConstant(rax, ACTIVATIONS.none + 1)
  code.jumpIfBelow('ungated')
  code.shiftRight(r15, 1)
  code.label('ungated')
  code.store(at(rsp, FRAME.outShape + 16), r15)
  code.shiftRight(r15, Math.log2(TILE_OUTPUTS))
  const out = { index: 0, shape: FRAME.outShape, dimensions: 3, place: argument(ARGUMENT.out) }
  writeOutputAddress(code, places, out)
  code.smallConstant(rax, workLayout(inputs, code.xBytes).bytes)
  code.multiply(rax, r14)
  code.store(at(rsp, FRAME.workShape), rax)
  const work = { index: 1, shape: FRAME.workShape, dimensions: 1, place: argument(ARGUMENT.work) }
  writeOutputAddress(code, places, work)

  code.testZero(r14)
  code.jumpIfZero('compute end')
  code.compareConstant(r14, 2)
  code.jumpIfBelow('quantise inline')
  code.load(rax, at(rsp, argument(ARGUMENT.rows)))
  code.testZero(rax)
  code.jumpIfNotZero('quantise together')
  code.compareConstant(r14, QUANTISED_INLINE + 1)
  code.jumpIfBelow('quantise inline')
  code.label('quantise together')
  code.move(rdx, r14)
  writeParallelFor(code, places, 'quantise', FRAME.argument)
  code.jump('quantised')
  code.label('quantise inline')
  code.move(rbx, r14)
  code.label('quantise next')
  code.subtractConstant(rbx, 1)
  code.address(rdi, at(rsp, FRAME.argument))
  code.move(rsi, rbx)
  code.callLabel('quantise')
  code.testZero(rbx)
  code.jumpIfNotZero('quantise next')
  code.label('quantised')
  code.move(rdx, r15)
  writeParallelFor(code, places, 'tile', FRAME.argument)
  code.label('compute end')
  code.addConstant(rsp, FRAME.bytes + 8)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}
