/** Which decode shapes are captured as CUDA graphs: those that repeat, up to a number, as each holds memory of its own. Pure. */

/** Runs of a shape before it is captured. */
const REPEATS = 4
export const MAX_CAPTURES = 64

export class GraphCaptures {
  readonly #seen = new Map<string, number>()
  readonly #ids = new Map<string, number>()

  /** The graph id of this run; `undefined`: it is not captured. */
  idOf(shape: string): number | undefined {
    const known = this.#ids.get(shape)
    if (known !== undefined) {
      return known
    }
    const seen = (this.#seen.get(shape) ?? 0) + 1
    this.#seen.set(shape, seen)
    if (seen < REPEATS || this.#ids.size >= MAX_CAPTURES) {
      return undefined
    }
    // 0 is ONNX Runtime's id of runs that name none.
    const id = this.#ids.size + 1
    this.#ids.set(shape, id)
    return id
  }
}

/**
 * Positions under which a decode step runs: the longest row's, rounded up, so that a captured run serves longer ones too.
 * GroupQueryAttention splits its work by it and reads each row's own length from the device.
 */
export function totalBucket(positions: number, maxPositions: number): number {
  // 2 at least: where the total equals the step's one token, the operator takes it for a prompt.
  return Math.min(Math.max(2, maxPositions), Math.max(2, 2 ** Math.ceil(Math.log2(positions))))
}
