/** `ScoreChanges` that grow token by token, so that a step hands them over without making them anew. */

import type { ScoreChanges } from '../engine-types.ts'

const FIRST_CAPACITY = 64

export class ChangeList {
  readonly #places = new Map<number, number>()
  #tokens = new Int32Array(FIRST_CAPACITY)
  #bias = new Float32Array(FIRST_CAPACITY)
  #repetition = new Float32Array(FIRST_CAPACITY)
  #penalty = new Float32Array(FIRST_CAPACITY)

  /** A token may be biased several times over. */
  addBias(token: number, bias: number): void {
    const at = this.#place(token)
    this.#bias[at] = (this.#bias[at] as number) + bias
  }

  set(token: number, repetition: number, penalty: number): void {
    const at = this.#place(token)
    this.#repetition[at] = repetition
    this.#penalty[at] = penalty
  }

  /** Valid until the next change. */
  view(): ScoreChanges {
    const { size } = this.#places
    return {
      tokens: this.#tokens.subarray(0, size),
      bias: this.#bias.subarray(0, size),
      repetition: this.#repetition.subarray(0, size),
      penalty: this.#penalty.subarray(0, size),
    }
  }

  #place(token: number): number {
    const known = this.#places.get(token)
    if (known !== undefined) {
      return known
    }
    const at = this.#places.size
    if (at === this.#tokens.length) {
      this.#grow(2 * at)
    }
    this.#places.set(token, at)
    this.#tokens[at] = token
    this.#repetition[at] = 1
    return at
  }

  #grow(capacity: number): void {
    const grow = (array: Float32Array): Float32Array<ArrayBuffer> => {
      const grown = new Float32Array(capacity)
      grown.set(array)
      return grown
    }
    const tokens = new Int32Array(capacity)
    tokens.set(this.#tokens)
    this.#tokens = tokens
    this.#bias = grow(this.#bias)
    this.#repetition = grow(this.#repetition)
    this.#penalty = grow(this.#penalty)
  }
}
