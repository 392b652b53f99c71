/** ONNX Runtime's CUDA execution provider as a session's device. Option names: its CUDA provider's documentation. */

import koffi from 'koffi'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'

export interface CudaOptions {
  deviceId: number
  /** Most bytes that the session's allocator takes; beyond it a run fails instead of the process. */
  memoryLimit: number
  /** Runs with fixed shapes are captured once and replayed (`RunOptions`). */
  graphs: boolean
}

/** A node without a CUDA kernel fails the session: on the processor it would run with copies on both sides, and nobody would know. */
export const CUDA_CONFIG = { 'session.disable_cpu_ep_fallback': '1' } as const

/** Text for `UpdateCUDAProviderOptions`; pure. */
export function cudaOptionTexts({ deviceId, memoryLimit, graphs }: CudaOptions): Record<string, string> {
  return {
    device_id: String(deviceId),
    gpu_mem_limit: String(Math.floor(memoryLimit)),
    // Blocks of just what is asked for are of no use to the next larger shape, and add up; the limit holds all the same.
    arena_extend_strategy: 'kNextPowerOfTwo',
    enable_cuda_graph: graphs ? '1' : '0',
    // Sums in f32 where cuBLAS would add halves: parity is worth more than the last percents.
    use_tf32: '0',
    // Flash (1), memory-efficient (2) and plain (16) attention: cuDNN's would depend on which cuDNN the machine has, if any.
    sdpa_kernel: '19',
  }
}

/** Fails where the provider's libraries are missing or do not load. */
export function appendCuda(environment: OrtEnvironment, sessionOptions: OrtHandle, options: CudaOptions): void {
  const { functions } = environment
  const native = environment.create((out) => functions.CreateCUDAProviderOptions(out))
  try {
    const texts = cudaOptionTexts(options)
    const strings = [...Object.keys(texts), ...Object.values(texts)].map((text) => Buffer.from(`${text}\0`, 'latin1'))
    const addresses = BigUint64Array.from(strings, (bytes) => BigInt(koffi.address(bytes)))
    const count = strings.length / 2
    environment.check(
      functions.UpdateCUDAProviderOptions(native, addresses.subarray(0, count), addresses.subarray(count), count),
    )
    environment.check(functions.SessionOptionsAppendExecutionProvider_CUDA_V2(sessionOptions, native))
  } finally {
    functions.ReleaseCUDAProviderOptions(native)
  }
}
