/**
 * The functions of ONNX Runtime's C API that are used here: index in the `OrtApi` table (append-only, so these hold for
 * every later library) and C signature, from `onnxruntime_c_api.h`. Handles are addresses; 0n is null.
 */

import koffi from 'koffi'
import type { OrtLibrary } from './library.ts'

/** An address owned by ONNX Runtime. */
export type OrtHandle = bigint
/** Where a function writes the handle it makes. */
type Out = BigUint64Array
/** A status; null: success. */
type Status = bigint | null

export interface OrtFunctions {
  GetErrorCode(status: OrtHandle): number
  GetErrorMessage(status: OrtHandle): string
  ReleaseStatus(status: OrtHandle): void
  CreateEnvWithGlobalThreadPools(level: number, id: string, threading: OrtHandle, out: Out): Status
  DisableTelemetryEvents(env: OrtHandle): Status
  ReleaseEnv(env: OrtHandle): void
  CreateThreadingOptions(out: Out): Status
  SetGlobalIntraOpNumThreads(options: OrtHandle, threads: number): Status
  SetGlobalInterOpNumThreads(options: OrtHandle, threads: number): Status
  SetGlobalSpinControl(options: OrtHandle, spin: number): Status
  ReleaseThreadingOptions(options: OrtHandle): void
  CreateSessionOptions(out: Out): Status
  SetSessionGraphOptimizationLevel(options: OrtHandle, level: number): Status
  SetOptimizedModelFilePath(options: OrtHandle, file: string): Status
  EnableProfiling(options: OrtHandle, prefix: string): Status
  DisableMemPattern(options: OrtHandle): Status
  DisablePerSessionThreads(options: OrtHandle): Status
  AddSessionConfigEntry(options: OrtHandle, key: string, value: string): Status
  AddInitializer(options: OrtHandle, name: string, value: OrtHandle): Status
  AddCustomOpDomain(options: OrtHandle, domain: OrtHandle): Status
  ReleaseSessionOptions(options: OrtHandle): void
  CreateSessionFromArray(env: OrtHandle, model: Uint8Array, bytes: number, options: OrtHandle, out: Out): Status
  CreateSessionFromArrayWithPrepackedWeightsContainer(
    env: OrtHandle,
    model: Uint8Array,
    bytes: number,
    options: OrtHandle,
    prepacked: OrtHandle,
    out: Out,
  ): Status
  SessionEndProfiling(session: OrtHandle, allocator: OrtHandle, out: Out): Status
  ReleaseSession(session: OrtHandle): void
  CreatePrepackedWeightsContainer(out: Out): Status
  ReleasePrepackedWeightsContainer(container: OrtHandle): void
  GetAllocatorWithDefaultOptions(out: Out): Status
  CreateMemoryInfo(name: string, allocatorType: number, deviceId: number, memoryType: number, out: Out): Status
  ReleaseMemoryInfo(info: OrtHandle): void
  CreateTensorWithDataAsOrtValue(
    info: OrtHandle,
    data: ArrayBufferView | bigint,
    bytes: number,
    shape: BigInt64Array,
    dimensions: number,
    elementType: number,
    out: Out,
  ): Status
  ReleaseValue(value: OrtHandle): void
  CreateAllocator(session: OrtHandle, info: OrtHandle, out: Out): Status
  ReleaseAllocator(allocator: OrtHandle): void
  AllocatorAlloc(allocator: OrtHandle, bytes: number, out: Out): Status
  AllocatorFree(allocator: OrtHandle, address: bigint): Status
  CreateRunOptions(out: Out): Status
  AddRunConfigEntry(options: OrtHandle, key: string, value: string): Status
  ReleaseRunOptions(options: OrtHandle): void
  CreateCUDAProviderOptions(out: Out): Status
  UpdateCUDAProviderOptions(options: OrtHandle, keys: BigUint64Array, values: BigUint64Array, count: number): Status
  SessionOptionsAppendExecutionProvider_CUDA_V2(options: OrtHandle, cuda: OrtHandle): Status
  ReleaseCUDAProviderOptions(options: OrtHandle): void
  CreateIoBinding(session: OrtHandle, out: Out): Status
  BindInput(binding: OrtHandle, name: string, value: OrtHandle): Status
  BindOutput(binding: OrtHandle, name: string, value: OrtHandle): Status
  ClearBoundInputs(binding: OrtHandle): void
  ClearBoundOutputs(binding: OrtHandle): void
  ReleaseIoBinding(binding: OrtHandle): void
  RunWithBinding(session: OrtHandle, runOptions: OrtHandle, binding: OrtHandle): Status
}

/** Index and signature; `h` a handle, `o` a handle's place, `p` a pointer to data, `s` a string, `i` int, `z` size_t. */
const TABLE: Record<
  keyof OrtFunctions,
  readonly [index: number, result: 'status' | 'void' | 'int' | 'str', args: string]
> = {
  GetErrorCode: [1, 'int', 'h'],
  GetErrorMessage: [2, 'str', 'h'],
  DisableTelemetryEvents: [6, 'status', 'h'],
  CreateSessionFromArray: [8, 'status', 'hpzho'],
  CreateSessionOptions: [10, 'status', 'o'],
  SetOptimizedModelFilePath: [11, 'status', 'hs'],
  EnableProfiling: [14, 'status', 'hs'],
  DisableMemPattern: [17, 'status', 'h'],
  SetSessionGraphOptimizationLevel: [23, 'status', 'hi'],
  AddCustomOpDomain: [28, 'status', 'hh'],
  CreateRunOptions: [39, 'status', 'o'],
  CreateTensorWithDataAsOrtValue: [49, 'status', 'hpzpzio'],
  CreateMemoryInfo: [68, 'status', 'siiio'],
  AllocatorAlloc: [75, 'status', 'hzo'],
  AllocatorFree: [76, 'status', 'hh'],
  GetAllocatorWithDefaultOptions: [78, 'status', 'o'],
  ReleaseEnv: [92, 'void', 'h'],
  ReleaseStatus: [93, 'void', 'h'],
  ReleaseMemoryInfo: [94, 'void', 'h'],
  ReleaseSession: [95, 'void', 'h'],
  ReleaseValue: [96, 'void', 'h'],
  ReleaseRunOptions: [97, 'void', 'h'],
  ReleaseSessionOptions: [100, 'void', 'h'],
  SessionEndProfiling: [110, 'status', 'hho'],
  CreateEnvWithGlobalThreadPools: [119, 'status', 'isho'],
  DisablePerSessionThreads: [120, 'status', 'h'],
  CreateThreadingOptions: [121, 'status', 'o'],
  ReleaseThreadingOptions: [122, 'void', 'h'],
  AddSessionConfigEntry: [130, 'status', 'hss'],
  CreateAllocator: [131, 'status', 'hho'],
  ReleaseAllocator: [132, 'void', 'h'],
  RunWithBinding: [133, 'status', 'hhh'],
  CreateIoBinding: [134, 'status', 'ho'],
  ReleaseIoBinding: [135, 'void', 'h'],
  BindInput: [136, 'status', 'hsh'],
  BindOutput: [137, 'status', 'hsh'],
  ClearBoundInputs: [141, 'void', 'h'],
  ClearBoundOutputs: [142, 'void', 'h'],
  SetGlobalIntraOpNumThreads: [147, 'status', 'hi'],
  SetGlobalInterOpNumThreads: [148, 'status', 'hi'],
  SetGlobalSpinControl: [149, 'status', 'hi'],
  AddInitializer: [150, 'status', 'hsh'],
  AddRunConfigEntry: [165, 'status', 'hss'],
  CreatePrepackedWeightsContainer: [166, 'status', 'o'],
  ReleasePrepackedWeightsContainer: [167, 'void', 'h'],
  CreateSessionFromArrayWithPrepackedWeightsContainer: [169, 'status', 'hpzhho'],
  SessionOptionsAppendExecutionProvider_CUDA_V2: [204, 'status', 'hh'],
  CreateCUDAProviderOptions: [205, 'status', 'o'],
  UpdateCUDAProviderOptions: [206, 'status', 'hppz'],
  ReleaseCUDAProviderOptions: [208, 'void', 'h'],
}

const ARGUMENTS: Record<string, string> = { h: 'void *', o: 'void *', p: 'void *', s: 'str', i: 'int', z: 'size_t' }
const RESULTS = { status: 'void *', void: 'void', int: 'int', str: 'str' } as const

export function bindOrtFunctions(library: OrtLibrary): OrtFunctions {
  const pointerBytes = koffi.sizeof('void *')
  const bound = Object.entries(TABLE).map(([name, [index, result, args]]) => {
    const types = [...args].map((letter) => ARGUMENTS[letter] ?? 'void *')
    const address = koffi.decode(library.table, index * pointerBytes, 'void *')
    return [name, koffi.decode(address, koffi.proto(RESULTS[result], types))]
  })
  // The table's rows and the interface name the same functions; koffi's are untyped.
  return Object.fromEntries(bound) as OrtFunctions
}
