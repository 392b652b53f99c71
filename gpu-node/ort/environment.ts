/** ONNX Runtime's environment: the function table, the process-wide thread pool, and status → Error. */

import { RingletError } from '../../shared/errors.ts'
import { bindOrtFunctions, type OrtFunctions, type OrtHandle } from './functions.ts'
import { loadOrtLibrary, type OrtLibrary } from './library.ts'

/** OrtLoggingLevel: warnings tell of fallbacks that are by design here; errors come back as statuses too. */
const LOG_ERRORS = 3

export class OrtEnvironment {
  readonly functions: OrtFunctions
  readonly library: OrtLibrary
  readonly #out = new BigUint64Array(1)
  #env: OrtHandle
  #cpu: OrtHandle

  /**
   * `threads`: size of the pool that all sessions of the process share; the first environment of a process decides.
   * Sessions with pools of their own would spin against each other when a step alternates between them.
   */
  constructor(threads: number, libraryFile?: string) {
    this.library = loadOrtLibrary(libraryFile)
    this.functions = bindOrtFunctions(this.library)
    const threading = this.create((out) => this.functions.CreateThreadingOptions(out))
    try {
      this.check(this.functions.SetGlobalIntraOpNumThreads(threading, threads))
      this.check(this.functions.SetGlobalInterOpNumThreads(threading, 1))
      this.#env = this.create((out) =>
        this.functions.CreateEnvWithGlobalThreadPools(LOG_ERRORS, 'ringlet', threading, out),
      )
    } finally {
      this.functions.ReleaseThreadingOptions(threading)
    }
    // Builds with telemetry send what sessions run to Microsoft.
    this.check(this.functions.DisableTelemetryEvents(this.#env))
    // OrtDeviceAllocator 0, OrtMemTypeDefault 0.
    this.#cpu = this.create((out) => this.functions.CreateMemoryInfo('Cpu', 0, 0, 0, out))
  }

  get handle(): OrtHandle {
    return this.#env
  }

  /** Memory info of plain process memory. */
  get cpu(): OrtHandle {
    return this.#cpu
  }

  /** Calls a function that makes an object, and returns its handle. */
  create(make: (out: BigUint64Array) => bigint | null): OrtHandle {
    this.#out[0] = 0n
    this.check(make(this.#out))
    return this.#out[0]
  }

  /** Reads and releases a status that is not success, and throws it. */
  check(status: bigint | null): void {
    if (status === null || status === 0n) {
      return
    }
    const code = this.functions.GetErrorCode(status)
    const message = this.functions.GetErrorMessage(status)
    this.functions.ReleaseStatus(status)
    throw new RingletError('engine_failed', `ONNX Runtime error ${code}: ${message}`)
  }

  /** Memory info of another device; the caller releases it. */
  memoryInfo(name: 'Cuda' | 'CudaPinned', deviceId: number): OrtHandle {
    return this.create((out) => this.functions.CreateMemoryInfo(name, 0, deviceId, 0, out))
  }

  dispose(): void {
    if (this.#env !== 0n) {
      this.functions.ReleaseMemoryInfo(this.#cpu)
      this.functions.ReleaseEnv(this.#env)
      this.#cpu = 0n
      this.#env = 0n
    }
  }
}
