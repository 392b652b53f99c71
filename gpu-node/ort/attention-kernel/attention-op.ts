/** The attention kernel as an operator, one for each shape of heads. */

import type { OrtLibrary } from '../library.ts'
import { Avx512Assembler } from '../machine-code/avx512.ts'
import { canRunMachineCode, installOp } from '../machine-code/custom-op.ts'
import { attentionDescription, writeAttentionKernel } from './attention-code.ts'
import type { AttentionShape } from './attention-layout.ts'

export function canRunAttentionKernel(platform: string = process.platform, arch: string = process.arch): boolean {
  return canRunMachineCode(['avx512f', 'avx512dq'], platform, arch)
}

/** How graphs name the operator. */
export function attentionOpType(shape: AttentionShape): string {
  return attentionDescription(shape).name
}

/** The operator's address, for `createOpDomain`; `undefined` where it cannot run. */
export function installAttentionOp(library: OrtLibrary, shape: AttentionShape): bigint | undefined {
  if (!canRunAttentionKernel()) {
    return undefined
  }
  const code = new Avx512Assembler()
  return installOp(code, attentionDescription(shape), () => writeAttentionKernel(code, library, shape))
}
