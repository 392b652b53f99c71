/** Which vector instructions this machine has, for kernels that are written for any of them. */

import { Avx2Assembler } from './avx2.ts'
import { Avx512Assembler } from './avx512.ts'
import { canRunMachineCode } from './custom-op.ts'
import type { VectorAssembler } from './vector-assembler.ts'

export interface InstructionSet {
  name: 'AVX-512' | 'AVX2'
  /** Names in /proc/cpuinfo. */
  features: readonly string[]
  assembler: () => VectorAssembler
}

const AVX2: InstructionSet = { name: 'AVX2', features: ['avx2', 'fma', 'f16c'], assembler: () => new Avx2Assembler() }

/** The sets that run here, the widest first. `extensions`: of AVX-512, what a kernel's code for it needs beside `avx512f`. */
export function instructionSets(
  extensions: readonly string[],
  platform: string = process.platform,
  arch: string = process.arch,
): InstructionSet[] {
  const wide: InstructionSet = {
    name: 'AVX-512',
    features: ['avx512f', ...extensions],
    assembler: () => new Avx512Assembler(),
  }
  return [wide, AVX2].filter(({ features }) => canRunMachineCode(features, platform, arch))
}
