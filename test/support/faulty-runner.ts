/** The arithmetic runner, whose calls fail when a test says so. */

import type { DecodeBatch, ModelRunner, PrefillChunk } from '../../gpu-node/engine/engine-types.ts'
import type { PackedAdapter } from '../../gpu-node/model/packed-adapter.ts'
import { type ArithmeticOptions, ArithmeticRunner, SMALL_ARITHMETIC } from './arithmetic-runner.ts'

export type RunnerCall = 'prefill' | 'decode' | 'load'

export class FaultyRunner extends ArithmeticRunner {
  readonly #fails: (call: RunnerCall) => boolean

  /** `fails` is asked at every call. */
  constructor(fails: (call: RunnerCall) => boolean, options: ArithmeticOptions = SMALL_ARITHMETIC) {
    super(options)
    this.#fails = fails
  }

  override prefill(chunk: PrefillChunk): Float32Array {
    this.#check('prefill')
    return super.prefill(chunk)
  }

  override decode(batch: DecodeBatch): Float32Array {
    this.#check('decode')
    return super.decode(batch)
  }

  override loadAdapter(adapterSlot: number, adapter: PackedAdapter): void {
    this.#check('load')
    super.loadAdapter(adapterSlot, adapter)
  }

  #check(call: RunnerCall): void {
    if (this.#fails(call)) {
      throw new Error(`${call} failed`)
    }
  }
}

export interface FaultyOptions extends ArithmeticOptions {
  /** Calls to `decode` that succeed; the thread exits at the next one. */
  decodesBeforeExit?: number
  /** Calls to `decode` that succeed; every later one throws. */
  decodesBeforeFailure?: number
  /** Refuses to start. */
  refuses?: boolean
}

/** For an engine thread: see `ThreadPart`. */
export async function createRunner(options: FaultyOptions): Promise<ModelRunner> {
  if (options.refuses === true) {
    throw new Error('no such model')
  }
  let decodes = 0
  const fails = (call: RunnerCall): boolean => {
    decodes += call === 'decode' ? 1 : 0
    if (decodes > (options.decodesBeforeExit ?? Number.POSITIVE_INFINITY)) {
      process.exit(1)
    }
    return decodes > (options.decodesBeforeFailure ?? Number.POSITIVE_INFINITY)
  }
  return new FaultyRunner(fails, options)
}
