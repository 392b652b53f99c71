/** The int8 product as operators, one for each number of inputs that a model has. */

import type { OrtLibrary } from '../library.ts'
import { installOp } from '../machine-code/custom-op.ts'
import { type InstructionSet, instructionSets } from '../machine-code/instruction-sets.ts'
import { linearDescription, writeLinearKernel } from './linear-code.ts'

/** For which the product can be written on this machine, the best first; none: it cannot run. */
export function linearSets(platform: string = process.platform, arch: string = process.arch): InstructionSet[] {
  return instructionSets(['avx512bw', 'avx512dq', 'avx512_vnni'], platform, arch)
}

/** How graphs name the operator. */
export function linearOpType(inputs: number): string {
  return linearDescription(inputs).name
}

/** The operator's address, for `createOpDomain`; `undefined` where it cannot run. */
export function installLinearOp(
  library: OrtLibrary,
  inputs: number,
  set: InstructionSet | undefined = linearSets()[0],
): bigint | undefined {
  const code = set?.assembler()
  return code && installOp(code, linearDescription(inputs), () => writeLinearKernel(code, library, inputs))
}
