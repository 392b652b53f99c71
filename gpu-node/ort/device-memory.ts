/** Memory of a device, host memory for copies to and from it, and streams of copies; on the processor the same with plain memory. */

import koffi from 'koffi'
import { RingletError } from '../../shared/errors.ts'
import type { CudaMajor } from './cuda-libraries.ts'
import { CudaRuntime, type CudaStream, type Rows } from './cuda-runtime.ts'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'

export interface DeviceMemory {
  /** For tensors over what `allocate` gives. */
  readonly memory: OrtHandle
  /** An address, aligned to 256 bytes; freed with everything else. */
  allocate(bytes: number): bigint
  /** Host memory from which and to which copies go. */
  staging(bytes: number): bigint
  stream(): CopyStream
  dispose(): void
}

/** Copies in order. Sources and targets stay as they are until `wait` returns. */
export interface CopyStream {
  up(from: ArrayBufferView | bigint, bytes: number, to: bigint): void
  upRows(from: ArrayBufferView, to: bigint, rows: Rows): void
  downRows(from: bigint, to: ArrayBufferView, rows: Rows): void
  /** Within the device. */
  acrossRows(from: bigint, to: bigint, rows: Rows): void
  /** To staging memory. */
  down(from: bigint, bytes: number, to: bigint): void
  clear(address: bigint, bytes: number): void
  wait(): void
  dispose(): void
}

export interface CudaMemoryOptions {
  deviceId: number
  cuda: CudaMajor
  /** Most bytes that `allocate` gives. */
  limit: number
  runtime?: CudaRuntime
}

export class CudaMemory implements DeviceMemory {
  readonly memory: OrtHandle
  readonly #environment: OrtEnvironment
  readonly #runtime: CudaRuntime
  readonly #limit: number
  readonly #taken: bigint[] = []
  readonly #pinned: bigint[] = []
  #bytes = 0

  constructor(environment: OrtEnvironment, { deviceId, cuda, limit, runtime }: CudaMemoryOptions) {
    this.#environment = environment
    this.#limit = limit
    this.#runtime = runtime ?? new CudaRuntime(deviceId, cuda)
    this.memory = environment.memoryInfo('Cuda', deviceId)
  }

  allocate(bytes: number): bigint {
    const rounded = Math.ceil(Math.max(bytes, 1) / ALIGNMENT) * ALIGNMENT
    const fits = this.#bytes + rounded <= this.#limit
    const address = fits ? this.#runtime.allocate(rounded) : undefined
    if (address === undefined) {
      const numbers = `${this.#bytes} of the ${this.#limit} bytes planned are taken, ${this.#runtime.freeBytes()} free on the GPU`
      throw new RingletError('engine_failed', `the GPU has no ${rounded} bytes for this node: ${numbers}`)
    }
    this.#bytes += rounded
    this.#taken.push(address)
    return address
  }

  staging(bytes: number): bigint {
    const address = this.#runtime.allocatePinned(Math.max(bytes, 1))
    this.#pinned.push(address)
    return address
  }

  stream(): CudaStream {
    return this.#runtime.stream()
  }

  dispose(): void {
    for (const address of this.#taken.splice(0)) {
      this.#runtime.free(address)
    }
    for (const address of this.#pinned.splice(0)) {
      this.#runtime.freePinned(address)
    }
    this.#environment.functions.ReleaseMemoryInfo(this.memory)
  }
}

export class HostMemory implements DeviceMemory {
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

  staging(bytes: number): bigint {
    return this.allocate(bytes)
  }

  stream(): CopyStream {
    return HOST_STREAM
  }

  dispose(): void {
    this.#arrays.length = 0
  }
}

const ALIGNMENT = 256

/** Host memory at an address; whoever owns the memory outlives it. */
export function viewMemory(address: bigint, bytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(koffi.view(address, bytes))
}

function bytesOf(from: ArrayBufferView | bigint, bytes: number): Uint8Array {
  return typeof from === 'bigint' ? viewMemory(from, bytes) : new Uint8Array(from.buffer, from.byteOffset, bytes)
}

function copyRows(from: Uint8Array, to: Uint8Array, { width, rows, fromPitch, toPitch }: Rows): void {
  for (let row = 0; row < rows; row++) {
    to.set(from.subarray(row * fromPitch, row * fromPitch + width), row * toPitch)
  }
}

/** Bytes from the first row's start to the last one's end. */
function extent({ width, rows }: Rows, pitch: number): number {
  return (rows - 1) * pitch + width
}

const HOST_STREAM: CopyStream = {
  up: (from, bytes, to) => viewMemory(to, bytes).set(bytesOf(from, bytes)),
  upRows: (from, to, rows) =>
    copyRows(bytesOf(from, extent(rows, rows.fromPitch)), viewMemory(to, extent(rows, rows.toPitch)), rows),
  downRows: (from, to, rows) =>
    copyRows(viewMemory(from, extent(rows, rows.fromPitch)), bytesOf(to, extent(rows, rows.toPitch)), rows),
  acrossRows: (from, to, rows) =>
    copyRows(viewMemory(from, extent(rows, rows.fromPitch)), viewMemory(to, extent(rows, rows.toPitch)), rows),
  down: (from, bytes, to) => viewMemory(to, bytes).set(viewMemory(from, bytes)),
  clear: (address, bytes) => viewMemory(address, bytes).fill(0),
  wait: () => {},
  dispose: () => {},
}
