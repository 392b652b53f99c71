/**
 * Operators of our own for ONNX Runtime: machine code in executable memory with an `OrtCustomOp` before it, and the domain
 * that sessions add. Lives as long as the process. x86-64 Linux only: System V calling convention, mmap(2).
 */

import { readFileSync } from 'node:fs'
import koffi from 'koffi'
import { RingletError } from '../../../shared/errors.ts'
import type { OrtLibrary } from '../library.ts'
import { type Assembler, at, REG } from './assembler.ts'

export const OP_DOMAIN = 'ringlet'

/** ONNXTensorElementDataType. */
export const OP_TYPES = { float: 1, uint8: 2, int64: 7, float16: 10 } as const
export type OpType = keyof typeof OP_TYPES

export interface OpDescription {
  name: string
  inputs: readonly OpType[]
  /** So many of the last inputs may be left out. */
  optionalInputs?: number
  outputs: readonly OpType[]
}

/** Entry points that an `OrtCustomOp` points to, in its order; `compute` is the operator's own. */
const ENTRIES = [
  'createKernel',
  'getName',
  'getProvider',
  'getInputType',
  'getInputCount',
  'getOutputType',
  'getOutputCount',
  'compute',
  'destroyKernel',
  'getInputCharacteristic',
  'getOutputCharacteristic',
] as const

/** OrtCustomOpInputOutputCharacteristic. */
const REQUIRED = 0
const OPTIONAL = 1

/** Indices of functions in the `OrtApi` table, as in `functions.ts`. */
const API = { createDomain: 26, addOp: 27, tensorData: 51, getInput: 90, getOutput: 91, parallelFor: 274 }
const POINTER_BYTES = 8
/** The first OrtCustomOp layout with all fields used here and none of the later, optional ones. */
const CUSTOM_OP_VERSION = 12
const PAGE_BYTES = 4096
/** In the first page: the operator's name, its OrtCustomOp, its code. */
const CUSTOM_OP_OFFSET = 64
const CODE_OFFSET = 512

const PROT_READ = 1
const PROT_WRITE = 2
const PROT_EXEC = 4
const MAP_PRIVATE_ANONYMOUS = 0x22

/** Whether this processor has all of these features, by their names in /proc/cpuinfo. */
export function canRunMachineCode(
  features: readonly string[],
  platform: string = process.platform,
  arch: string = process.arch,
): boolean {
  if (platform !== 'linux' || arch !== 'x64') {
    return false
  }
  const flags = /^flags\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? []
  return features.every((feature) => flags.includes(feature))
}

/**
 * Installs an operator and returns the address of its `OrtCustomOp`; `undefined` where the system gives no executable memory.
 * `writeCompute` adds the label `compute`: `compute(kernel, context)`.
 */
export function installOp(code: Assembler, description: OpDescription, writeCompute: () => void): bigint | undefined {
  const libc = koffi.load('libc.so.6')
  const map = libc.func('mmap', 'void *', ['void *', 'size_t', 'int', 'int', 'int', 'int64_t'])
  const protect = libc.func('mprotect', 'int', ['void *', 'size_t', 'int'])
  const copy = libc.func('memcpy', 'void *', ['void *', 'void *', 'size_t'])
  writeDescription(code, description)
  writeCompute()
  const entries = ENTRIES.map((entry) => code.offsetOf(entry))
  const nameOffset = code.offsetOf('name')
  const bytes = code.finish()
  const size = Math.ceil((CODE_OFFSET + bytes.length) / PAGE_BYTES) * PAGE_BYTES
  const start: bigint = map(null, size, PROT_READ | PROT_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
  const image = Buffer.alloc(size)
  image.writeBigUInt64LE(BigInt(CUSTOM_OP_VERSION), CUSTOM_OP_OFFSET)
  for (const [index, entry] of entries.entries()) {
    const address = start + BigInt(CODE_OFFSET + entry)
    image.writeBigUInt64LE(address, CUSTOM_OP_OFFSET + (1 + index) * POINTER_BYTES)
  }
  image.set(bytes, CODE_OFFSET)
  image.write(`${description.name}\0`, CODE_OFFSET + nameOffset)
  copy(start, image, size)
  // Written first, executable then, never both. Hardened systems may refuse.
  if (protect(start, size, PROT_READ | PROT_EXEC) !== 0) {
    return undefined
  }
  return start + BigInt(CUSTOM_OP_OFFSET)
}

/** For `SessionOptions.customOps`. */
export function createOpDomain(library: OrtLibrary, ops: readonly bigint[]): bigint {
  const call = (index: number, result: string, types: string[]) =>
    koffi.decode(koffi.decode(library.table, index * POINTER_BYTES, 'void *'), koffi.proto(result, types))
  const out = new BigUint64Array(1)
  const refused = (status: bigint | null): boolean => status !== null
  const failed =
    refused(call(API.createDomain, 'void *', ['str', 'void *'])(OP_DOMAIN, out)) ||
    ops.some((op) => refused(call(API.addOp, 'void *', ['void *', 'void *'])(out[0], op)))
  if (failed) {
    throw new RingletError('internal', 'ONNX Runtime refused an operator of this node')
  }
  return out[0] ?? 0n
}

/** Loads the function table's address into a register for the `write…` functions below. */
export function writeApiTable(code: Assembler, library: OrtLibrary, register: number): void {
  code.constant(register, library.table)
}

export interface TensorPlaces {
  /** Register with the context, and with the function table; both survive calls. */
  context: number
  api: number
  /** Offset from rsp of a word that may be overwritten. */
  scratch: number
}

/** Puts the data address of input `index` at [rsp + place]. */
export function writeInputAddress(code: Assembler, places: TensorPlaces, index: number, place: number): void {
  writeInput(code, places, index)
  writeDataAddress(code, places, place)
}

/** The same of an input that may be left out: 0 then. */
export function writeOptionalInputAddress(code: Assembler, places: TensorPlaces, index: number, place: number): void {
  const { rax, rsp } = REG
  writeInput(code, places, index)
  code.load(rax, at(rsp, places.scratch))
  code.store(at(rsp, place), rax)
  code.testZero(rax)
  code.jumpIfZero(`input ${index} end`)
  writeDataAddress(code, places, place)
  code.label(`input ${index} end`)
}

function writeInput(code: Assembler, places: TensorPlaces, index: number): void {
  const { rdi, rsi, rdx, rsp } = REG
  code.move(rdi, places.context)
  code.smallConstant(rsi, index)
  code.address(rdx, at(rsp, places.scratch))
  code.call(at(places.api, API.getInput * POINTER_BYTES))
}

/** Makes output `index` of the shape at [rsp + shape], and puts its data address at [rsp + place]. */
export function writeOutputAddress(
  code: Assembler,
  places: TensorPlaces,
  output: { index: number; shape: number; dimensions: number; place: number },
): void {
  const { rdi, rsi, rdx, rcx, r8, rsp } = REG
  code.move(rdi, places.context)
  code.smallConstant(rsi, output.index)
  code.address(rdx, at(rsp, output.shape))
  code.smallConstant(rcx, output.dimensions)
  code.address(r8, at(rsp, places.scratch))
  code.call(at(places.api, API.getOutput * POINTER_BYTES))
  writeDataAddress(code, places, output.place)
}

/**
 * Calls `label(argument, i)` for each i below the count in rdx, on ONNX Runtime's own pool; the argument is rsp + `argument`.
 */
export function writeParallelFor(code: Assembler, places: TensorPlaces, label: string, argument: number): void {
  const { rdi, rsi, rcx, r8, rsp } = REG
  code.move(rdi, places.context)
  code.addressOfLabel(rsi, label)
  // Batches: as many as threads.
  code.smallConstant(rcx, 0)
  code.address(r8, at(rsp, argument))
  code.call(at(places.api, API.parallelFor * POINTER_BYTES))
}

function writeDataAddress(code: Assembler, places: TensorPlaces, place: number): void {
  const { rdi, rsi, rsp } = REG
  code.load(rdi, at(rsp, places.scratch))
  code.address(rsi, at(rsp, place))
  code.call(at(places.api, API.tensorData * POINTER_BYTES))
}

/** The functions with which ONNX Runtime asks what the operator is. */
function writeDescription(code: Assembler, { name, inputs, optionalInputs = 0, outputs }: OpDescription): void {
  const answer = (entry: string, value: number): void => {
    code.align(16)
    code.label(entry)
    code.smallConstant(REG.rax, value)
    code.ret()
  }
  const answerName = (entry: string): void => {
    code.align(16)
    code.label(entry)
    code.addressOfLabel(REG.rax, 'name')
    code.ret()
  }
  const answerByIndex = (entry: string, answers: readonly number[]): void => {
    code.align(16)
    code.label(entry)
    for (const [index, value] of answers.entries()) {
      code.smallConstant(REG.rax, value)
      code.compareConstant(REG.rsi, index + 1)
      code.jumpIfBelow(`${entry} end`)
    }
    code.label(`${entry} end`)
    code.ret()
  }
  code.align(16)
  code.label('name')
  code.space(Math.ceil((name.length + 1) / 16) * 16)
  // The kernel has no state; any address that is not null will do.
  answerName('createKernel')
  answerName('getName')
  // Null: the CPU provider.
  answer('getProvider', 0)
  const typesOf = (list: readonly OpType[]) => list.map((type) => OP_TYPES[type])
  answerByIndex('getInputType', typesOf(inputs))
  answer('getInputCount', inputs.length)
  answerByIndex('getOutputType', typesOf(outputs))
  answer('getOutputCount', outputs.length)
  answer('destroyKernel', 0)
  answerByIndex(
    'getInputCharacteristic',
    inputs.map((_, index) => (index < inputs.length - optionalInputs ? REQUIRED : OPTIONAL)),
  )
  answer('getOutputCharacteristic', REQUIRED)
}
