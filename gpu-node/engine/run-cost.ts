/**
 * What a run will take, from what runs took: ms = a + b · decoding rows + c · prompt tokens. `a` and `b` are learned from runs
 * that decode alone (normalised least mean squares, Nagumo and Noda 1967), `c` from what the others took beyond that: runs
 * that always mix the same rows and tokens can't tell which of them cost what.
 */

/** How much of an error the next prediction of the same run corrects. */
const RATE = 0.25
/** Runs beside prompts until one decodes alone, so that the decode's cost stays known: 3 % of the prompts' time. */
export const RUNS_UNTIL_DECODE_ALONE = 32

export class RunCost {
  #fixed = 0
  #perRow = 0
  #perToken = 0
  #decoded = false
  #prefilled = false
  #mixedInRow = 0

  /** `ms`: what the run took. */
  measure(rows: number, tokens: number, ms: number): void {
    if (tokens === 0) {
      const step = ((this.#decoded ? RATE : 1) * (ms - this.#decode(rows))) / (1 + rows * rows)
      this.#fixed = Math.max(0, this.#fixed + step)
      this.#perRow = Math.max(0, this.#perRow + step * rows)
      this.#decoded = true
      this.#mixedInRow = 0
      return
    }
    const perToken = Math.max(0, ms - this.#decode(rows)) / tokens
    this.#perToken += (this.#prefilled ? RATE : 1) * (perToken - this.#perToken)
    this.#prefilled = true
    this.#mixedInRow += rows > 0 ? 1 : 0
  }

  /** Of a decode; `undefined` until one was measured. */
  decodeMs(rows: number): number | undefined {
    return this.#decoded ? this.#decode(rows) : undefined
  }

  /** Of one more prompt token; `undefined` until one was measured. */
  get prefillMsPerToken(): number | undefined {
    return this.#prefilled ? this.#perToken : undefined
  }

  /** The next run should decode alone. */
  get wantsDecodeAlone(): boolean {
    return this.#mixedInRow >= RUNS_UNTIL_DECODE_ALONE
  }

  #decode(rows: number): number {
    return this.#fixed + this.#perRow * rows
  }
}
