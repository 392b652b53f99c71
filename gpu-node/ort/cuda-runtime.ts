/**
 * CUDA's runtime library, as far as it is needed beside ONNX Runtime: a GPU's memory, and copies to and from it on streams of
 * our own. ONNX Runtime copies a bound input once, when it is bound, and never again: what changes from step to step is copied
 * here, into memory that is bound once. Signatures: CUDA Runtime API, "Memory Management" and "Stream Management".
 */

import koffi from 'koffi'
import { RingletError } from '../../shared/errors.ts'
import type { CudaMajor } from './cuda-libraries.ts'

type Out = BigUint64Array
type Address = bigint
type Data = ArrayBufferView | Address

interface RuntimeFunctions {
  cudaSetDevice(device: number): number
  cudaThreadExchangeStreamCaptureMode(mode: Int32Array): number
  cudaMalloc(out: Out, bytes: number): number
  cudaFree(address: Address): number
  cudaHostAlloc(out: Out, bytes: number, flags: number): number
  cudaFreeHost(address: Address): number
  cudaMemGetInfo(free: Out, total: Out): number
  cudaMemcpyAsync(to: Data, from: Data, bytes: number, kind: number, stream: Address): number
  cudaMemcpy2DAsync(
    to: Data,
    toPitch: number,
    from: Data,
    fromPitch: number,
    width: number,
    rows: number,
    kind: number,
    stream: Address,
  ): number
  cudaMemsetAsync(address: Address, value: number, bytes: number, stream: Address): number
  cudaStreamCreateWithFlags(out: Out, flags: number): number
  cudaStreamSynchronize(stream: Address): number
  cudaStreamDestroy(stream: Address): number
  cudaGetErrorString(code: number): string
}

/** `p` a pointer, `z` size_t, `i` int, `u` unsigned int. All return a cudaError_t. */
const SIGNATURES: Record<Exclude<keyof RuntimeFunctions, 'cudaGetErrorString'>, string> = {
  cudaSetDevice: 'i',
  cudaThreadExchangeStreamCaptureMode: 'p',
  cudaMalloc: 'pz',
  cudaFree: 'p',
  cudaHostAlloc: 'pzu',
  cudaFreeHost: 'p',
  cudaMemGetInfo: 'pp',
  cudaMemcpyAsync: 'ppzip',
  cudaMemcpy2DAsync: 'pzpzzzip',
  cudaMemsetAsync: 'pizp',
  cudaStreamCreateWithFlags: 'pu',
  cudaStreamSynchronize: 'p',
  cudaStreamDestroy: 'p',
}

/** cudaMemcpyKind. */
const HOST_TO_DEVICE = 1
const DEVICE_TO_HOST = 2
const DEVICE_TO_DEVICE = 3
/** cudaStreamCaptureMode. */
const CAPTURE_MODE_THREAD_LOCAL = 1
/** cudaStreamNonBlocking: no order with the default stream, as ONNX Runtime's own. */
const NON_BLOCKING = 1
const OUT_OF_MEMORY = 2

/** What loads a library; koffi's, or a test's. */
export interface LoadedRuntime {
  func(name: string, result: string, args: string[]): unknown
}

const TYPES: Record<string, string> = { p: 'void *', z: 'size_t', i: 'int', u: 'unsigned int' }

/** koffi unloads what nobody holds. */
const held = new Map<string, LoadedRuntime>()

function loadRuntime(cuda: CudaMajor): LoadedRuntime {
  const file = `libcudart.so.${cuda}`
  const known = held.get(file) ?? (koffi.load(file) as unknown as LoadedRuntime) // Its overloads are wider than what is used.
  held.set(file, known)
  return known
}

export class CudaRuntime {
  readonly #functions: RuntimeFunctions
  readonly #deviceId: number

  constructor(deviceId: number, cuda: CudaMajor, library: LoadedRuntime = loadRuntime(cuda)) {
    this.#deviceId = deviceId
    const bound = Object.entries(SIGNATURES).map(([name, letters]) => {
      const types = [...letters].map((letter) => TYPES[letter] ?? 'void *')
      return [name, library.func(name, 'int', types)] as const
    })
    const functions = {
      ...Object.fromEntries(bound),
      cudaGetErrorString: library.func('cudaGetErrorString', 'str', ['int']),
    }
    // The table's rows and the interface name the same functions; koffi's are untyped.
    this.#functions = functions as unknown as RuntimeFunctions
    this.enter()
  }

  /**
   * Makes the GPU the calling thread's. While ONNX Runtime captures a run on one thread, calls such as cudaMalloc fail on every
   * other thread of the process, and the capture with them, unless these say that they care for none but their own.
   */
  enter(): void {
    const { cudaSetDevice, cudaThreadExchangeStreamCaptureMode } = this.#functions
    this.#check('cudaSetDevice', cudaSetDevice(this.#deviceId))
    const mode = Int32Array.of(CAPTURE_MODE_THREAD_LOCAL)
    this.#check('cudaThreadExchangeStreamCaptureMode', cudaThreadExchangeStreamCaptureMode(mode))
  }

  freeBytes(): number {
    const free = new BigUint64Array(1)
    this.#check('cudaMemGetInfo', this.#functions.cudaMemGetInfo(free, new BigUint64Array(1)))
    return Number(free[0])
  }

  /** `undefined`: the GPU has not that much left. */
  allocate(bytes: number): Address | undefined {
    const out = new BigUint64Array(1)
    const code = this.#functions.cudaMalloc(out, bytes)
    if (code === OUT_OF_MEMORY) {
      return undefined
    }
    this.#check('cudaMalloc', code)
    return out[0]!
  }

  free(address: Address): void {
    this.#check('cudaFree', this.#functions.cudaFree(address))
  }

  /** Of the host, and pinned: copies from and to it go at the bus's full speed. */
  allocatePinned(bytes: number): Address {
    const out = new BigUint64Array(1)
    this.#check(`cudaHostAlloc of ${bytes} bytes`, this.#functions.cudaHostAlloc(out, bytes, 0))
    return out[0]!
  }

  freePinned(address: Address): void {
    this.#check('cudaFreeHost', this.#functions.cudaFreeHost(address))
  }

  stream(): CudaStream {
    const out = new BigUint64Array(1)
    this.#check('cudaStreamCreateWithFlags', this.#functions.cudaStreamCreateWithFlags(out, NON_BLOCKING))
    return new CudaStream(this.#functions, out[0]!, (what, code) => this.#check(what, code))
  }

  #check(what: string, code: number): void {
    if (code !== 0) {
      const why = this.#functions.cudaGetErrorString(code)
      throw new RingletError('engine_failed', `${what} failed with CUDA error ${code}: ${why}`)
    }
  }
}

/** `rows` of `width` bytes, whose starts are so many bytes apart. */
export interface Rows {
  width: number
  rows: number
  fromPitch: number
  toPitch: number
}

/** Copies in order, beside whatever runs on other streams. What they read and write lives until `wait` returns. */
export class CudaStream {
  readonly #functions: RuntimeFunctions
  readonly #stream: Address
  readonly #check: (what: string, code: number) => void
  /** Host memory of copies under way, so that it is not collected. */
  readonly #underWay: ArrayBufferView[] = []

  constructor(functions: RuntimeFunctions, stream: Address, check: (what: string, code: number) => void) {
    this.#functions = functions
    this.#stream = stream
    this.#check = check
  }

  up(from: Data, bytes: number, to: Address): void {
    this.#hold(from)
    this.#check('a copy to the GPU', this.#functions.cudaMemcpyAsync(to, from, bytes, HOST_TO_DEVICE, this.#stream))
  }

  upRows(from: ArrayBufferView, to: Address, { width, rows, fromPitch, toPitch }: Rows): void {
    this.#hold(from)
    const { cudaMemcpy2DAsync } = this.#functions
    const code = cudaMemcpy2DAsync(to, toPitch, from, fromPitch, width, rows, HOST_TO_DEVICE, this.#stream)
    this.#check('a copy to the GPU', code)
  }

  downRows(from: Address, to: ArrayBufferView, { width, rows, fromPitch, toPitch }: Rows): void {
    this.#hold(to)
    const { cudaMemcpy2DAsync } = this.#functions
    const code = cudaMemcpy2DAsync(to, toPitch, from, fromPitch, width, rows, DEVICE_TO_HOST, this.#stream)
    this.#check('a copy from the GPU', code)
  }

  /** Within the device. */
  acrossRows(from: Address, to: Address, { width, rows, fromPitch, toPitch }: Rows): void {
    const { cudaMemcpy2DAsync } = this.#functions
    const code = cudaMemcpy2DAsync(to, toPitch, from, fromPitch, width, rows, DEVICE_TO_DEVICE, this.#stream)
    this.#check('a copy on the GPU', code)
  }

  down(from: Address, bytes: number, to: Address): void {
    this.#check('a copy from the GPU', this.#functions.cudaMemcpyAsync(to, from, bytes, DEVICE_TO_HOST, this.#stream))
  }

  clear(address: Address, bytes: number): void {
    this.#check('clearing memory', this.#functions.cudaMemsetAsync(address, 0, bytes, this.#stream))
  }

  /** Blocks until everything before it is done. */
  wait(): void {
    this.#check('a copy', this.#functions.cudaStreamSynchronize(this.#stream))
    this.#underWay.length = 0
  }

  dispose(): void {
    this.wait()
    this.#check('cudaStreamDestroy', this.#functions.cudaStreamDestroy(this.#stream))
  }

  #hold(host: Data): void {
    if (typeof host !== 'bigint') {
      this.#underWay.push(host)
    }
  }
}
