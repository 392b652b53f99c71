/**
 * One device: sessions on it, its memory, and copies to and from it. On the processor the same with plain memory, so that all
 * of a device's code runs without one.
 */

import { RingletError } from '../../../shared/errors.ts'
import type { CudaMajor } from '../../ort/cuda-libraries.ts'
import { type CopyStream, CudaMemory, type DeviceMemory, HostMemory, viewMemory } from '../../ort/device-memory.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtSession } from '../../ort/session.ts'
import { type ElementType, OrtTensor, type TensorArray } from '../../ort/tensor.ts'

export type DeviceTarget =
  | { kind: 'cpu' }
  | {
      kind: 'cuda'
      deviceId: number
      /** Of the libraries that the provider was built for. */
      cuda: CudaMajor
      /** Bytes of everything that stays: weights, KV, banks, step buffers. */
      residentLimit: number
      /** Bytes that one session may use while it runs. */
      workspaceLimit: number
    }

/** Host memory from which and to which copies go: pinned where there is a GPU. */
export interface StagingMemory {
  address: bigint
  bytes: Uint8Array<ArrayBuffer>
}

export class DeviceContext {
  readonly environment: OrtEnvironment
  readonly target: DeviceTarget
  readonly #memory: DeviceMemory
  /** Of the copies that their callers wait for. */
  readonly #copies: CopyStream
  /** Of adapters that are loaded while steps run. */
  readonly loads: CopyStream

  constructor(environment: OrtEnvironment, target: DeviceTarget) {
    this.environment = environment
    this.target = target
    this.#memory =
      target.kind === 'cuda'
        ? new CudaMemory(environment, { ...target, limit: target.residentLimit })
        : new HostMemory(environment)
    this.#copies = this.#memory.stream()
    this.loads = this.#memory.stream()
  }

  /** A session on the device, with a stream of its own. `graphs`: its runs may be captured. */
  session(model: Uint8Array, initializers: ReadonlyMap<string, OrtTensor> = new Map(), graphs = false): OrtSession {
    return new OrtSession(this.environment, {
      model,
      initializers,
      // The graphs are written fused; what ONNX Runtime would fold it has no data for.
      optimization: 'basic',
      ...this.#cuda(graphs),
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
    const address = this.#memory.staging(bytes)
    return { address, bytes: viewMemory(address, bytes) }
  }

  /** Blocks until the copies that `make` asks for are made. */
  copy(make: (stream: CopyStream) => void): void {
    make(this.#copies)
    this.#copies.wait()
  }

  /** Copies to the device; blocks until it is there. */
  upload(from: TensorArray, to: bigint): void {
    this.#copies.up(from, from.byteLength, to)
    this.#copies.wait()
  }

  uploadStaged({ address }: StagingMemory, bytes: number, to: bigint): void {
    this.#copies.up(address, bytes, to)
    this.#copies.wait()
  }

  /** Copies to the host; blocks until it is there. */
  download(from: bigint, bytes: number, { address }: StagingMemory): void {
    this.#copies.down(from, bytes, address)
    this.#copies.wait()
  }

  clear(address: bigint, bytes: number): void {
    this.#copies.clear(address, bytes)
    this.#copies.wait()
  }

  dispose(): void {
    this.#copies.dispose()
    this.loads.dispose()
    this.#memory.dispose()
  }

  #cuda(graphs: boolean) {
    if (this.target.kind === 'cpu') {
      if (graphs) {
        throw new RingletError('internal', 'the processor captures no graphs')
      }
      return {}
    }
    const { deviceId, workspaceLimit } = this.target
    return { cuda: { deviceId, memoryLimit: workspaceLimit, graphs } }
  }
}
