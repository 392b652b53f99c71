// How fast memory is read by as many threads as a step uses: they sum up pieces of an array far larger than any cache.

import { GraphWriter } from '../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../gpu-node/ort/environment.ts'
import { at, REG } from '../gpu-node/ort/machine-code/assembler.ts'
import { Avx2Assembler } from '../gpu-node/ort/machine-code/avx2.ts'
import {
  createOpDomain,
  installOp,
  OP_DOMAIN,
  type OpDescription,
  writeApiTable,
  writeInputAddress,
  writeOutputAddress,
  writeParallelFor,
} from '../gpu-node/ort/machine-code/custom-op.ts'
import { OrtSession } from '../gpu-node/ort/session.ts'
import { HugeArena } from '../gpu-node/ort/system-memory.ts'
import { OrtTensor } from '../gpu-node/ort/tensor.ts'

const PIECE_BYTES = 2 ** 21
const PIECES = 256
/** Read at once, from a quarter of the piece each: more than one stream keeps more of a core's requests under way. */
const STREAMS = 4
const VECTOR_BYTES = 32
const VECTORS_AT_ONCE = 4

const DESCRIPTION: OpDescription = { name: 'ReadMemory', inputs: ['uint8', 'int64'], outputs: ['float'] }
const FRAME = { scratch: 0, data: 0x20, shape: 0x28, out: 0x30, bytes: 0x40 }

/** What the probe reads each time. */
export const PROBE_BYTES = PIECE_BYTES * PIECES

/** Reads them once, from the kind of pages that weights lie in. */
export function createBandwidthProbe(threads: number): () => void {
  const environment = new OrtEnvironment(threads)
  const code = new Avx2Assembler()
  const op = installOp(code, DESCRIPTION, () => {
    writeCompute(code, environment)
    writePiece(code)
  })
  if (op === undefined) {
    throw new Error('this machine gives no executable memory')
  }
  const arena = new HugeArena()
  const data = arena.take(PROBE_BYTES).fill(1)
  const graph = new GraphWriter()
  const input = graph.input('data', 'uint8', [data.length])
  const node = graph.node(DESCRIPTION.name, [input, graph.int64([1])], { domain: OP_DOMAIN })
  graph.output('out', node, 'float32', [1])
  const customOps = [createOpDomain(environment.library, [op])]
  const binding = new OrtBinding(environment, new OrtSession(environment, { model: graph.toModel(), customOps }))
  binding.input('data', new OrtTensor(environment, 'uint8', [data.length], data))
  binding.output('out', new OrtTensor(environment, 'float32', [1], new Float32Array(1)))
  return () => binding.run()
}

function writeCompute(code: Avx2Assembler, { library }: OrtEnvironment): void {
  const { rdx, rsp, rbp, rsi, r12, r13 } = REG
  const places = { context: r12, api: r13, scratch: FRAME.scratch }
  const saved = [rbp, r12, r13]
  code.align(16)
  code.label('compute')
  for (const register of saved) {
    code.push(register)
  }
  code.subtractConstant(rsp, FRAME.bytes)
  code.move(r12, rsi)
  writeApiTable(code, library, r13)
  writeInputAddress(code, places, 0, FRAME.data)
  writeInputAddress(code, places, 1, FRAME.shape)
  code.smallConstant(rdx, 1)
  code.store(at(rsp, FRAME.shape), rdx)
  writeOutputAddress(code, places, { index: 0, shape: FRAME.shape, dimensions: 1, place: FRAME.out })
  code.smallConstant(rdx, PIECES)
  writeParallelFor(code, places, 'piece', FRAME.data)
  code.addConstant(rsp, FRAME.bytes)
  for (const register of saved.toReversed()) {
    code.pop(register)
  }
  code.ret()
}

/** `piece(argument, index)`. */
function writePiece(code: Avx2Assembler): void {
  const { rax, rcx, rsi, rdi } = REG
  const streamBytes = PIECE_BYTES / STREAMS
  code.align(16)
  code.label('piece')
  code.load(rax, at(rdi, 0))
  code.shiftLeft(rsi, Math.log2(PIECE_BYTES))
  code.add(rax, rsi)
  code.smallConstant(rcx, streamBytes / VECTOR_BYTES / VECTORS_AT_ONCE)
  for (let sum = 0; sum < STREAMS; sum++) {
    code.zeroVector(sum)
  }
  code.label('read')
  for (let vector = 0; vector < VECTORS_AT_ONCE; vector++) {
    for (let stream = 0; stream < STREAMS; stream++) {
      code.addVector(stream, stream, at(rax, stream * streamBytes + vector * VECTOR_BYTES))
    }
  }
  code.addConstant(rax, VECTORS_AT_ONCE * VECTOR_BYTES)
  code.subtractConstant(rcx, 1)
  code.jumpIfNotZero('read')
  code.zeroUpper()
  code.ret()
}
