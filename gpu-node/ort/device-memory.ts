/** Memory that a session's allocator gives: on its GPU, or of the host and pinned for copies to it. Freed as a whole. */

import koffi from 'koffi'
import { RingletError } from '../../shared/errors.ts'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'
import type { OrtSession } from './session.ts'

export interface Allocator {
  /** For tensors over what it gives. */
  readonly memory: OrtHandle
  /** An address; 256-byte aligned, or of a page. */
  allocate(bytes: number): bigint
  dispose(): void
}

export class SessionAllocator implements Allocator {
  readonly memory: OrtHandle
  readonly #environment: OrtEnvironment
  readonly #allocator: OrtHandle
  readonly #taken: bigint[] = []

  /** `session` has the CUDA provider and outlives the allocator. */
  constructor(environment: OrtEnvironment, session: OrtSession, kind: 'Cuda' | 'CudaPinned', deviceId: number) {
    this.#environment = environment
    this.memory = environment.memoryInfo(kind, deviceId)
    this.#allocator = environment.create((out) =>
      environment.functions.CreateAllocator(session.handle, this.memory, out),
    )
  }

  allocate(bytes: number): bigint {
    const { functions } = this.#environment
    const address = this.#environment.create((out) =>
      functions.AllocatorAlloc(this.#allocator, Math.max(bytes, 1), out),
    )
    if (address === 0n) {
      throw new RingletError('engine_failed', `the device has no ${bytes} bytes left`)
    }
    this.#taken.push(address)
    return address
  }

  dispose(): void {
    const { functions } = this.#environment
    for (const address of this.#taken.splice(0)) {
      this.#environment.check(functions.AllocatorFree(this.#allocator, address))
    }
    functions.ReleaseAllocator(this.#allocator)
    functions.ReleaseMemoryInfo(this.memory)
  }
}

/** The same over plain process memory: a device runner on the processor. */
export class HostAllocator implements Allocator {
  readonly memory: OrtHandle
  readonly #arrays: Uint8Array[] = []

  constructor(environment: OrtEnvironment) {
    this.memory = environment.cpu
  }

  allocate(bytes: number): bigint {
    const array = new Uint8Array(Math.max(bytes, 1) + ALIGNMENT)
    this.#arrays.push(array)
    const address = BigInt(koffi.address(array))
    return (address + BigInt(ALIGNMENT - 1)) & ~BigInt(ALIGNMENT - 1)
  }

  dispose(): void {
    this.#arrays.length = 0
  }
}

const ALIGNMENT = 256

/** Host memory at an address as an array buffer; whoever owns the memory outlives it. */
export function viewMemory(address: bigint, bytes: number): ArrayBuffer {
  return koffi.view(address, bytes)
}
