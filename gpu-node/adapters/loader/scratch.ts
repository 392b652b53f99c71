/**
 * Memory of a loader thread for what lives no longer than one job: the file and its numbers. Used again and again, so that a
 * load neither faults in fresh pages nor gives them back while the engine runs.
 */

import type { Allocate } from '../raw-tensor.ts'

/** What a thread keeps between jobs; an adapter that needs more gets memory of its own for the rest. */
export const SCRATCH_BYTES = 64 * 1024 * 1024
const GROWTH_BYTES = 1024 * 1024
const ALIGNMENT = 64

export class Scratch {
  #memory = new SharedArrayBuffer(0)
  #used = 0
  /** What the job would have taken, had there been as much. */
  #wanted = 0

  /** Everything given before may be written over from now on. */
  reset(): void {
    const wanted = Math.min(SCRATCH_BYTES, Math.ceil(this.#wanted / GROWTH_BYTES) * GROWTH_BYTES)
    if (wanted > this.#memory.byteLength) {
      this.#memory = new SharedArrayBuffer(wanted)
    }
    this.#used = 0
    this.#wanted = 0
  }

  /** Gives the memory back. */
  free(): void {
    this.#memory = new SharedArrayBuffer(0)
    this.#used = 0
  }

  readonly allocate: Allocate = (bytes) => {
    const size = Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
    this.#wanted += size
    if (this.#used + size > this.#memory.byteLength) {
      return new Uint8Array(new SharedArrayBuffer(bytes))
    }
    const at = this.#used
    this.#used += size
    return new Uint8Array(this.#memory, at, bytes)
  }
}
