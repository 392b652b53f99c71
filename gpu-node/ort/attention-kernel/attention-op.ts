/** The attention kernel as an operator, one for each shape of heads. */

import type { OrtLibrary } from '../library.ts'
import { installOp } from '../machine-code/custom-op.ts'
import { type InstructionSet, instructionSets } from '../machine-code/instruction-sets.ts'
import { attentionDescription, writeAttentionKernel } from './attention-code.ts'
import type { AttentionShape } from './attention-layout.ts'

/** For which the kernel can be written on this machine, the best first; none: it cannot run. */
export function attentionSets(platform: string = process.platform, arch: string = process.arch): InstructionSet[] {
  return instructionSets(['avx512dq'], platform, arch)
}

/** How graphs name the operator. */
export function attentionOpType(shape: AttentionShape): string {
  return attentionDescription(shape).name
}

/** The operator's address, for `createOpDomain`; `undefined` where it cannot run. */
export function installAttentionOp(
  library: OrtLibrary,
  shape: AttentionShape,
  set: InstructionSet | undefined = attentionSets()[0],
): bigint | undefined {
  const code = set?.assembler()
  return code && installOp(code, attentionDescription(shape), () => writeAttentionKernel(code, library, shape))
}
