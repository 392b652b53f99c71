/**
 * The LoRA kernel as an operator, and the tables through which it finds a row's adapter. Where it can't run (not x86-64 Linux,
 * no AVX2 and FMA3, no executable memory to be had) there is none, and the graph's own operators serve.
 */

import koffi from 'koffi'
import type { OrtLibrary } from '../library.ts'
import { Avx2Assembler } from '../machine-code/avx2.ts'
import { canRunMachineCode, installOp, OP_DOMAIN } from '../machine-code/custom-op.ts'
import { LORA_DESCRIPTION, writeLoraKernel } from './kernel-code.ts'
import { type KernelWeights, OUTS_PER_BLOCK, type PackedGroup } from './kernel-layout.ts'

/** How graphs name the operator. Inputs and output: `compute` in kernel-code.ts. */
export const LORA_OP = { domain: OP_DOMAIN, type: LORA_DESCRIPTION.name } as const

export function canRunLoraKernel(platform: string = process.platform, arch: string = process.arch): boolean {
  return canRunMachineCode(['avx2', 'fma'], platform, arch)
}

/** The operator's address, for `createOpDomain`; `undefined` where it cannot run. */
export function installLoraOp(library: OrtLibrary, weights: KernelWeights): bigint | undefined {
  if (!canRunLoraKernel()) {
    return undefined
  }
  const code = new Avx2Assembler()
  return installOp(code, LORA_DESCRIPTION, () => writeLoraKernel(code, library, weights))
}

/** int64 fields of a group's record and of each segment behind it, as `row` in kernel-code.ts reads them. */
const GROUP_FIELDS = 4
const SEGMENT_FIELDS = 7

/** Bytes of a group's record, so that the groups of all layers can lie at fixed offsets in an adapter's table. */
export function groupRecordBytes(segments: number): number {
  return (GROUP_FIELDS + SEGMENT_FIELDS * segments) * 8
}

/**
 * Writes a packed group's record at `offset` (int64s) of an adapter's table. The group's arrays must live, and stay where
 * they are, as long as the table is used; `address` tells where one lies. A group that is not adapted stays all zero.
 */
export function writeGroupRecord(table: BigInt64Array, offset: number, group: PackedGroup): void {
  const fields = [addressOf(group.a), group.rankBlocks, addressOf(group.aScales), group.segments.length]
  for (const segment of group.segments) {
    const whole = Math.floor(segment.outs / OUTS_PER_BLOCK)
    const tails = (segment.outs - whole * OUTS_PER_BLOCK) / 8
    fields.push(segment.rankOffset * 4, segment.rank, segment.outOffset * 4, whole)
    fields.push(addressOf(segment.b), addressOf(segment.bScales), tails)
  }
  for (const [index, field] of fields.entries()) {
    table[offset + index] = BigInt(field)
  }
}

let identity: ((to: ArrayBufferView, from: ArrayBufferView, bytes: number) => bigint) | undefined

/** Where a typed array's memory lies. Buffers do not move; the caller keeps them reachable. */
export function addressOf(array: ArrayBufferView): bigint {
  // memmove returns its first argument; nothing is copied.
  identity ??= koffi.load('libc.so.6').func('memmove', 'void *', ['void *', 'void *', 'size_t'])
  return identity(array, array, 0)
}
