/** Options of a run: which captured CUDA graph it is. */

import type { OrtEnvironment } from './environment.ts'
import type { OrtHandle } from './functions.ts'

/** The graph id of runs that are never captured. */
export const NO_GRAPH = -1

export class RunOptions {
  readonly handle: OrtHandle
  readonly #environment: OrtEnvironment

  /** `graphId`: runs with one id have the same shapes and addresses; the first of them captures, later ones replay. */
  constructor(environment: OrtEnvironment, graphId: number) {
    this.#environment = environment
    this.handle = environment.create((out) => environment.functions.CreateRunOptions(out))
    environment.check(environment.functions.AddRunConfigEntry(this.handle, 'gpu_graph_id', String(graphId)))
  }

  dispose(): void {
    this.#environment.functions.ReleaseRunOptions(this.handle)
  }
}
