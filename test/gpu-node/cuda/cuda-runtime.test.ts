/** CUDA's runtime as far as it is called from here, with a stand-in for its library that keeps plain memory. */

import koffi from 'koffi'
import { describe, expect, test } from 'vitest'
import { CudaRuntime, type LoadedRuntime } from '../../../gpu-node/ort/cuda-runtime.ts'
import { CudaMemory, viewMemory } from '../../../gpu-node/ort/device-memory.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'

interface Copy {
  name: string
  bytes: number
  kind: number | undefined
  stream: bigint
}

/** Copies happen when their stream is waited for, as late as CUDA may. */
function standIn(totalBytes: number) {
  const arrays = new Map<bigint, Uint8Array>()
  const pending: (() => void)[] = []
  const copies: Copy[] = []
  const captureModes: number[] = []
  let taken = 0
  const allocate = (out: BigUint64Array, bytes: number): number => {
    if (taken + bytes > totalBytes) {
      return 2
    }
    taken += bytes
    const array = new Uint8Array(bytes)
    const address = BigInt(koffi.address(array))
    arrays.set(address, array)
    out[0] = address
    return 0
  }
  const free = (address: bigint): number => {
    taken -= arrays.get(address)?.length ?? 0
    return arrays.delete(address) ? 0 : 1
  }
  const bytesAt = (place: ArrayBufferView | bigint, bytes: number): Uint8Array =>
    typeof place === 'bigint' ? viewMemory(place, bytes) : new Uint8Array(place.buffer, place.byteOffset, bytes)
  const functions: Record<string, (...args: never[]) => unknown> = {
    cudaSetDevice: (device: number) => (device === 0 ? 0 : 101),
    cudaMalloc: allocate,
    cudaFree: free,
    cudaHostAlloc: allocate,
    cudaFreeHost: free,
    cudaMemGetInfo: (left: BigUint64Array) => {
      left[0] = BigInt(totalBytes - taken)
      return 0
    },
    cudaMemcpyAsync: (to: bigint, from: bigint, bytes: number, kind: number, stream: bigint) => {
      copies.push({ name: 'copy', bytes, kind, stream })
      pending.push(() => viewMemory(to, bytes).set(bytesAt(from, bytes)))
      return 0
    },
    cudaThreadExchangeStreamCaptureMode: (mode: Int32Array) => {
      captureModes.push(mode[0]!)
      return 0
    },
    cudaMemcpy2DAsync: (
      to: bigint | Uint8Array,
      toPitch: number,
      from: bigint | Uint8Array,
      fromPitch: number,
      width: number,
      rows: number,
      kind: number,
      stream: bigint,
    ) => {
      copies.push({ name: 'rows', bytes: width * rows, kind, stream })
      pending.push(() => {
        const source = bytesAt(from, (rows - 1) * fromPitch + width)
        const target = bytesAt(to, (rows - 1) * toPitch + width)
        for (let row = 0; row < rows; row++) {
          target.set(source.subarray(row * fromPitch, row * fromPitch + width), row * toPitch)
        }
      })
      return 0
    },
    cudaMemsetAsync: (address: bigint, value: number, bytes: number, stream: bigint) => {
      copies.push({ name: 'clear', bytes, kind: undefined, stream })
      pending.push(() => viewMemory(address, bytes).fill(value))
      return 0
    },
    cudaStreamCreateWithFlags: (out: BigUint64Array, flags: number) => {
      out[0] = 77n
      return flags === 1 ? 0 : 1
    },
    cudaStreamSynchronize: () => {
      for (const act of pending.splice(0)) {
        act()
      }
      return 0
    },
    cudaStreamDestroy: () => 0,
    cudaGetErrorString: (code: number) => (code === 101 ? 'invalid device ordinal' : 'unknown'),
  }
  const library: LoadedRuntime = { func: (name) => functions[name] }
  return { library, arrays, copies, captureModes, taken: () => taken }
}

describe('memory of a GPU', () => {
  const environment = new OrtEnvironment(1)
  const open = (limit: number, totalBytes = 2 ** 20) => {
    const cuda = standIn(totalBytes)
    const runtime = new CudaRuntime(0, 13, cuda.library)
    return { cuda, memory: new CudaMemory(environment, { deviceId: 0, cuda: 13, limit, runtime }) }
  }

  test('what goes up is there once the stream was waited for, each time anew, and comes down again', () => {
    const { cuda, memory } = open(4096)
    const stream = memory.stream()
    const [address, staging] = [memory.allocate(16), memory.staging(16)]
    for (const value of [3, 9]) {
      viewMemory(staging, 16).fill(value)
      stream.up(staging, 16, address)
      stream.wait()
      expect(viewMemory(address, 16)).toEqual(new Uint8Array(16).fill(value))
    }
    stream.clear(address, 4)
    stream.upRows(Uint8Array.of(1, 2, 3, 4), address + 5n, { width: 2, rows: 2, fromPitch: 2, toPitch: 8 })
    stream.down(address, 16, staging)
    stream.wait()
    expect([...viewMemory(staging, 16)]).toEqual([0, 0, 0, 0, 9, 1, 2, 9, 9, 9, 9, 9, 9, 3, 4, 9])
    expect(cuda.copies.map(({ name, kind }) => `${name} ${kind}`)).toEqual([
      'copy 1',
      'copy 1',
      'clear undefined',
      'rows 1',
      'copy 2',
    ])
    memory.dispose()
    expect(cuda.taken()).toBe(0)
  })

  test('rows go down and across as they lie', () => {
    const { cuda, memory } = open(4096)
    const stream = memory.stream()
    const [from, to] = [memory.allocate(16), memory.allocate(16)]
    viewMemory(from, 16).set(Uint8Array.from({ length: 16 }, (_, i) => i))
    const host = new Uint8Array(6)
    stream.downRows(from + 1n, host, { width: 2, rows: 3, fromPitch: 5, toPitch: 2 })
    stream.acrossRows(from, to, { width: 3, rows: 2, fromPitch: 8, toPitch: 4 })
    stream.wait()
    expect([...host]).toEqual([1, 2, 6, 7, 11, 12])
    expect([...viewMemory(to, 8)]).toEqual([0, 1, 2, 0, 8, 9, 10, 0])
    expect(cuda.copies.map(({ name, kind }) => `${name} ${kind}`)).toEqual(['rows 2', 'rows 3'])
    memory.dispose()
  })

  test('a thread on a GPU lets no other thread’s capture fail its calls', () => {
    // cudaStreamCaptureModeThreadLocal.
    expect(open(1024).cuda.captureModes).toEqual([1])
  })

  test('what the plan or the GPU does not hold is refused with the numbers, and all is freed', () => {
    const planned = open(1024)
    planned.memory.allocate(600)
    const why =
      'the GPU has no 512 bytes for this node: 768 of the 1024 bytes planned are taken, 1047808 free on the GPU'
    expect(() => planned.memory.allocate(257)).toThrow(why)
    planned.memory.allocate(256)
    planned.memory.dispose()
    expect(planned.cuda.arrays.size).toBe(0)
    const small = open(2 ** 30, 1024)
    expect(() => small.memory.allocate(4096)).toThrow('1024 free on the GPU')
    small.memory.dispose()
  })

  test('an error tells CUDA’s own words', () => {
    const { library } = standIn(1)
    expect(() => new CudaRuntime(3, 13, library)).toThrow(
      'cudaSetDevice failed with CUDA error 101: invalid device ordinal',
    )
  })
})
