/** The int8 product as operators, one for each number of inputs that a model has. */

import type { OrtLibrary } from '../library.ts'
import { Avx512Assembler } from '../machine-code/avx512.ts'
import { canRunMachineCode, installOp } from '../machine-code/custom-op.ts'
import { linearDescription, writeLinearKernel } from './linear-code.ts'

export function canRunLinearKernel(platform: string = process.platform, arch: string = process.arch): boolean {
  return canRunMachineCode(['avx512f', 'avx512bw', 'avx512dq', 'avx512_vnni'], platform, arch)
}

/** How graphs name the operator. */
export function linearOpType(inputs: number): string {
  return linearDescription(inputs).name
}

/** The operator's address, for `createOpDomain`; `undefined` where it cannot run. */
export function installLinearOp(library: OrtLibrary, inputs: number): bigint | undefined {
  if (!canRunLinearKernel()) {
    return undefined
  }
  const code = new Avx512Assembler()
  return installOp(code, linearDescription(inputs), () => writeLinearKernel(code, library, inputs))
}
