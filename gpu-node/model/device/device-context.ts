/**
 * One device: sessions on it, its memory, and copies to and from it. On the processor the same with plain memory, so that all
 * of a device's code runs without one.
 */

import { RingletError } from '../../../shared/errors.ts'
import { OrtBinding } from '../../ort/binding.ts'
import { type Allocator, HostAllocator, SessionAllocator, viewMemory } from '../../ort/device-memory.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtSession } from '../../ort/session.ts'
import { type ElementType, OrtTensor, type TensorArray } from '../../ort/tensor.ts'
import { GraphWriter } from '../graph/graph-writer.ts'
import { DEVICE_OPSET } from './device-form.ts'

export type DeviceTarget =
  | { kind: 'cpu' }
  | {
      kind: 'cuda'
      deviceId: number
      /** Bytes of everything that stays: weights, KV, banks, step buffers. */
      residentLimit: number
      /** Bytes that one session may use while it runs. */
      workspaceLimit: number
    }

/** Host memory from which and to which copies go: pinned where there is a GPU. */
export interface StagingMemory {
  bytes: Uint8Array
  tensor: (type: ElementType, shape: readonly number[], offset?: number) => OrtTensor
}

export class DeviceContext {
  readonly environment: OrtEnvironment
  readonly target: DeviceTarget
  readonly #copySession: OrtSession
  readonly #copy: OrtBinding
  readonly #memory: Allocator
  readonly #staging: Allocator

  constructor(environment: OrtEnvironment, target: DeviceTarget) {
    this.environment = environment
    this.target = target
    this.#copySession = new OrtSession(environment, {
      model: copyModel(),
      optimization: 'basic',
      ...this.#cuda(target.kind === 'cuda' ? target.residentLimit : 0, false),
    })
    this.#copy = new OrtBinding(environment, this.#copySession)
    this.#memory =
      target.kind === 'cuda'
        ? new SessionAllocator(environment, this.#copySession, 'Cuda', target.deviceId)
        : new HostAllocator(environment)
    this.#staging =
      target.kind === 'cuda'
        ? new SessionAllocator(environment, this.#copySession, 'CudaPinned', target.deviceId)
        : new HostAllocator(environment)
  }

  /** A session on the device, with a stream of its own. `graphs`: its runs may be captured. */
  session(model: Uint8Array, initializers: ReadonlyMap<string, OrtTensor> = new Map(), graphs = false): OrtSession {
    const limit = this.target.kind === 'cuda' ? this.target.workspaceLimit : 0
    return new OrtSession(this.environment, {
      model,
      initializers,
      // The graphs are written fused; what ONNX Runtime would fold it has no data for.
      optimization: 'basic',
      ...this.#cuda(limit, graphs),
    })
  }

  allocate(bytes: number): bigint {
    return this.#memory.allocate(bytes)
  }

  /** A tensor over memory of `allocate`. */
  tensor(type: ElementType, shape: readonly number[], address: bigint): OrtTensor {
    return new OrtTensor(this.environment, type, shape, address, this.#memory.memory)
  }

  staging(bytes: number): StagingMemory {
    const address = this.#staging.allocate(bytes)
    return {
      bytes: new Uint8Array(viewMemory(address, bytes)),
      // Told as plain memory: ONNX Runtime then copies in the right direction, and CUDA knows itself what is pinned.
      tensor: (type, shape, offset = 0) => new OrtTensor(this.environment, type, shape, address + BigInt(offset)),
    }
  }

  /** Copies an array of the host to the device; blocks until it is there. */
  upload(from: TensorArray, to: bigint): void {
    for (const [at, bytes] of pieces(from)) {
      const source = new OrtTensor(this.environment, 'uint8', [bytes.length], bytes)
      this.#run(source, this.tensor('uint8', [bytes.length], to + BigInt(at)))
    }
  }

  /** A copy that is made many times: tensors of bytes, of which one is the host's. */
  copier(from: OrtTensor, to: OrtTensor): { run(): void; dispose(): void } {
    const binding = new OrtBinding(this.environment, this.#copySession)
    binding.input('from', from)
    binding.output('to', to)
    return binding
  }

  dispose(): void {
    this.#copy.dispose()
    this.#memory.dispose()
    this.#staging.dispose()
    this.#copySession.dispose()
  }

  #run(from: OrtTensor, to: OrtTensor): void {
    try {
      this.#copy.input('from', from)
      this.#copy.output('to', to)
      this.#copy.run()
    } finally {
      this.#copy.clear()
      from.dispose()
      to.dispose()
    }
  }

  #cuda(memoryLimit: number, graphs: boolean) {
    if (this.target.kind === 'cpu') {
      if (graphs) {
        throw new RingletError('internal', 'the processor captures no graphs')
      }
      return {}
    }
    return { cuda: { deviceId: this.target.deviceId, memoryLimit, graphs } }
  }
}

/** ONNX Runtime keeps a copy of what is on its way, within the limit of what stays. */
const BYTES_AT_ONCE = 1 << 25

function* pieces({ buffer, byteOffset, byteLength }: TensorArray): Generator<[at: number, bytes: Uint8Array]> {
  for (let at = 0; at < byteLength; at += BYTES_AT_ONCE) {
    yield [at, new Uint8Array(buffer, byteOffset + at, Math.min(BYTES_AT_ONCE, byteLength - at))]
  }
}

function copyModel(): Uint8Array {
  const graph = new GraphWriter('float32', DEVICE_OPSET)
  const from = graph.input('from', 'uint8', ['bytes'])
  graph.nodes('Identity', [from], {}, ['to'])
  graph.declareOutput('to', 'uint8', ['bytes'])
  return graph.toModel()
}
