/** A session made from model bytes over shared initializers, and its bindings. */

import { RingletError } from '../../shared/errors.ts'
import { appendCuda, CUDA_CONFIG, type CudaOptions } from './cuda-provider.ts'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'
import { externalDataFolder } from './library.ts'
import type { OrtTensor } from './tensor.ts'

/** GraphOptimizationLevel. */
const OPTIMIZATION = { none: 0, basic: 1, extended: 2, all: 99 } as const

export interface SessionOptions {
  /** The model's ONNX protobuf. */
  model: Uint8Array
  /** Initializers that sessions share, by name; their memory is kept as long as the session. */
  initializers?: ReadonlyMap<string, OrtTensor>
  /** Weights in kernel layout, kept once for all sessions made with it. */
  prepacked?: PrepackedWeights
  optimization?: keyof typeof OPTIMIZATION
  /** ONNX Runtime's session configuration keys. */
  config?: Readonly<Record<string, string>>
  /** Operators beside ONNX Runtime's own: the LoRA kernel's domain (lora-kernel/lora-op.ts). */
  customOps?: readonly OrtHandle[]
  /** Runs on a GPU; absent: on the processor. */
  cuda?: CudaOptions
  /** Writes a profile of each run to `<prefix>_<time>.json` when the session is disposed. */
  profilePrefix?: string
}

/** Kernel-layout weights that several sessions share. Outlives them. */
export class PrepackedWeights {
  readonly #environment: OrtEnvironment
  #container: OrtHandle

  constructor(environment: OrtEnvironment) {
    this.#environment = environment
    this.#container = environment.create((out) => environment.functions.CreatePrepackedWeightsContainer(out))
  }

  get handle(): OrtHandle {
    return this.#container
  }

  dispose(): void {
    if (this.#container !== 0n) {
      this.#environment.functions.ReleasePrepackedWeightsContainer(this.#container)
      this.#container = 0n
    }
  }
}

export class OrtSession {
  readonly #environment: OrtEnvironment
  readonly #profiled: boolean
  /** ONNX Runtime reads their memory as long as the session lives. */
  #initializers: ReadonlyMap<string, OrtTensor> | undefined
  #session: OrtHandle

  constructor(environment: OrtEnvironment, options: SessionOptions) {
    this.#environment = environment
    this.#profiled = options.profilePrefix !== undefined
    this.#initializers = options.initializers
    const { functions } = environment
    const native = environment.create((out) => functions.CreateSessionOptions(out))
    try {
      fillSessionOptions(environment, native, options)
      const { model, prepacked } = options
      this.#session = environment.create((out) =>
        prepacked === undefined
          ? functions.CreateSessionFromArray(environment.handle, model, model.byteLength, native, out)
          : functions.CreateSessionFromArrayWithPrepackedWeightsContainer(
              environment.handle,
              model,
              model.byteLength,
              native,
              prepacked.handle,
              out,
            ),
      )
    } finally {
      functions.ReleaseSessionOptions(native)
    }
  }

  get handle(): OrtHandle {
    if (this.#session === 0n) {
      throw new RingletError('internal', 'a disposed session is used')
    }
    return this.#session
  }

  dispose(): void {
    if (this.#session === 0n) {
      return
    }
    const { functions } = this.#environment
    if (this.#profiled) {
      const allocator = this.#environment.create((out) => functions.GetAllocatorWithDefaultOptions(out))
      this.#environment.create((out) => functions.SessionEndProfiling(this.#session, allocator, out))
    }
    functions.ReleaseSession(this.#session)
    this.#session = 0n
    this.#initializers = undefined
  }
}

function fillSessionOptions(environment: OrtEnvironment, native: OrtHandle, options: SessionOptions): void {
  const { functions } = environment
  environment.check(functions.SetSessionGraphOptimizationLevel(native, OPTIMIZATION[options.optimization ?? 'all']))
  environment.check(functions.DisablePerSessionThreads(native))
  const config = {
    'session.model_external_initializers_file_folder_path': externalDataFolder(),
    ...(options.cuda === undefined ? {} : CUDA_CONFIG),
    ...options.config,
  }
  for (const [key, value] of Object.entries(config)) {
    environment.check(functions.AddSessionConfigEntry(native, key, value))
  }
  for (const [name, tensor] of options.initializers ?? []) {
    environment.check(functions.AddInitializer(native, name, tensor.handle))
  }
  for (const domain of options.customOps ?? []) {
    environment.check(functions.AddCustomOpDomain(native, domain))
  }
  if (options.cuda !== undefined) {
    // One block a shape beside what its first run took would be twice the memory.
    environment.check(functions.DisableMemPattern(native))
    appendCuda(environment, native, options.cuda)
  }
  if (options.profilePrefix !== undefined) {
    environment.check(functions.EnableProfiling(native, options.profilePrefix))
  }
}
