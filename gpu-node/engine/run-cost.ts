/**
 * What a run will take, from what runs took: ms = a + b · decoding rows + c · prompt tokens. The coefficients follow the
 * measurements (normalised least mean squares, Nagumo and Noda 1967), so they hold for the lengths and adapters of the moment.
 */

/** How much of an error the next prediction of the same run corrects. */
const RATE = 0.25

export class RunCost {
  #fixed = 0
  #perRow = 0
  #perToken = 0
  #decoded = false
  #prefilled = false

  /** `ms`: what the run took. */
  measure(rows: number, tokens: number, ms: number): void {
    const predicted = this.#fixed + this.#perRow * rows + this.#perToken * tokens
    // The first measurement of its kind is taken as it is.
    const isFirst = (rows > 0 && !this.#decoded) || (tokens > 0 && !this.#prefilled)
    const step = ((isFirst ? 1 : RATE) * (ms - predicted)) / (1 + rows * rows + tokens * tokens)
    this.#fixed = Math.max(0, this.#fixed + step)
    this.#perRow = Math.max(0, this.#perRow + step * rows)
    this.#perToken = Math.max(0, this.#perToken + step * tokens)
    this.#decoded ||= rows > 0
    this.#prefilled ||= tokens > 0
  }

  /** Of a decode; `undefined` until one was measured. */
  decodeMs(rows: number): number | undefined {
    return this.#decoded ? this.#fixed + this.#perRow * rows : undefined
  }

  /** Of one more prompt token; `undefined` until one was measured. */
  get prefillMsPerToken(): number | undefined {
    return this.#prefilled ? this.#perToken : undefined
  }
}
