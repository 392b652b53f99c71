/**
 * Owns the LoRA kernel in this process: its machine code in executable memory, and the `OrtCustomOp` domain that sessions
 * add. Where it can't run (not x86-64 Linux, no AVX2 and FMA3, no executable memory to be had) there is none, and the
 * graph's own operators serve.
 */

import { readFileSync } from 'node:fs'
import koffi from 'koffi'
import { RingletError } from '../../../shared/errors.ts'
import type { OrtLibrary } from '../library.ts'
import { assembleKernel, ENTRIES } from './kernel-code.ts'
import { type KernelWeights, OUTS_PER_BLOCK, type PackedGroup } from './kernel-layout.ts'

/** How graphs name the operator. Inputs and output: `compute` in kernel-code.ts. */
export const LORA_OP = { domain: 'ringlet', type: 'LoraDelta', version: 1 } as const

export interface LoraOp {
  /** For `SessionOptions.customOps`; lives as long as the process. */
  domain: bigint
  weights: KernelWeights
}

/** Indices of functions in the `OrtApi` table, as in `functions.ts`. */
const API = { createDomain: 26, addOp: 27, tensorData: 51, getInput: 90, getOutput: 91, parallelFor: 274 }
/** The first OrtCustomOp layout with all fields used here and none of the later, optional ones. */
const CUSTOM_OP_VERSION = 12
const POINTER_BYTES = 8
const PAGE_BYTES = 4096
/** Code begins behind the operator's name and its OrtCustomOp. */
const CODE_OFFSET = 512
const CUSTOM_OP_OFFSET = 64

/** mmap(2) and mprotect(2) on Linux. */
const PROT_READ = 1
const PROT_WRITE = 2
const PROT_EXEC = 4
const MAP_PRIVATE_ANONYMOUS = 0x22

export function canRunLoraKernel(platform: string = process.platform, arch: string = process.arch): boolean {
  if (platform !== 'linux' || arch !== 'x64') {
    return false
  }
  const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? []
  return ['avx2', 'fma'].every((flag) => flags.includes(flag))
}

/** `undefined` where it cannot run. */
export function createLoraOp(library: OrtLibrary, weights: KernelWeights): LoraOp | undefined {
  if (!canRunLoraKernel()) {
    return undefined
  }
  const libc = koffi.load('libc.so.6')
  const map = libc.func('mmap', 'void *', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t'])
  const protect = libc.func('mprotect', 'int', ['void *', 'size_t', 'int'])
  const copy = libc.func('memcpy', 'void *', ['void *', 'void *', 'size_t'])
  const page: bigint = map(null, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
  const { code, entries } = assembleKernel({
    weights,
    api: library.table,
    name: page,
    offsets: {
      getInput: API.getInput * POINTER_BYTES,
      getOutput: API.getOutput * POINTER_BYTES,
      tensorData: API.tensorData * POINTER_BYTES,
      parallelFor: API.parallelFor * POINTER_BYTES,
    },
  })
  if (CODE_OFFSET + code.length > PAGE_BYTES) {
    throw new RingletError('internal', `the LoRA kernel's ${code.length} bytes do not fit in a page`)
  }
  const image = Buffer.alloc(PAGE_BYTES)
  image.write(`${LORA_OP.type}\0`)
  image.writeBigUInt64LE(BigInt(CUSTOM_OP_VERSION), CUSTOM_OP_OFFSET)
  // OrtCustomOp: version, then these functions; input and output characteristics are the same answer.
  for (const [index, entry] of [...ENTRIES, 'getCharacteristic' as const].entries()) {
    const address = page + BigInt(CODE_OFFSET + entries[entry])
    image.writeBigUInt64LE(address, CUSTOM_OP_OFFSET + (1 + index) * POINTER_BYTES)
  }
  image.set(code, CODE_OFFSET)
  copy(page, image, PAGE_BYTES)
  // Written first, executable then, never both. Hardened systems may refuse.
  if (protect(page, PAGE_BYTES, PROT_READ | PROT_EXEC) !== 0) {
    return undefined
  }
  return { domain: createDomain(library, page + BigInt(CUSTOM_OP_OFFSET)), weights }
}

function createDomain(library: OrtLibrary, customOp: bigint): bigint {
  const call = (index: number, result: string, types: string[]) =>
    koffi.decode(koffi.decode(library.table, index * POINTER_BYTES, 'void *'), koffi.proto(result, types))
  const out = new BigUint64Array(1)
  const failed =
    call(API.createDomain, 'void *', ['str', 'void *'])(LORA_OP.domain, out) ??
    call(API.addOp, 'void *', ['void *', 'void *'])(out[0], customOp)
  if (failed !== null) {
    throw new RingletError('internal', 'ONNX Runtime refused the LoRA operator')
  }
  return out[0] ?? 0n
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
