/** Inputs and outputs of a session bound to tensors once, and rebound only where they change. */

import { RingletError } from '../../shared/errors.ts'
import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'
import type { RunOptions } from './run-options.ts'
import type { OrtSession } from './session.ts'
import type { OrtTensor } from './tensor.ts'

export class OrtBinding {
  readonly #environment: OrtEnvironment
  readonly #session: OrtSession
  /** What is bound; also keeps the tensors' memory reachable. */
  readonly #bound = new Map<string, OrtTensor>()
  #binding: OrtHandle

  constructor(environment: OrtEnvironment, session: OrtSession) {
    this.#environment = environment
    this.#session = session
    this.#binding = environment.create((out) => environment.functions.CreateIoBinding(session.handle, out))
  }

  input(name: string, tensor: OrtTensor): void {
    if (this.#bound.get(name) !== tensor) {
      this.#environment.check(this.#environment.functions.BindInput(this.#binding, name, tensor.handle))
      this.#bound.set(name, tensor)
    }
  }

  /** Names of inputs and outputs differ in every graph here, so one map serves both. */
  output(name: string, tensor: OrtTensor): void {
    if (this.#bound.get(name) !== tensor) {
      this.#environment.check(this.#environment.functions.BindOutput(this.#binding, name, tensor.handle))
      this.#bound.set(name, tensor)
    }
  }

  /** Blocks its thread until the outputs are written. */
  run(options?: RunOptions): void {
    if (this.#binding === 0n) {
      throw new RingletError('internal', 'a disposed binding is run')
    }
    this.#environment.check(
      this.#environment.functions.RunWithBinding(this.#session.handle, options?.handle ?? 0n, this.#binding),
    )
  }

  /** Forgets all inputs and outputs. */
  clear(): void {
    this.#environment.functions.ClearBoundInputs(this.#binding)
    this.#environment.functions.ClearBoundOutputs(this.#binding)
    this.#bound.clear()
  }

  dispose(): void {
    if (this.#binding !== 0n) {
      this.#environment.functions.ReleaseIoBinding(this.#binding)
      this.#bound.clear()
      this.#binding = 0n
    }
  }
}
