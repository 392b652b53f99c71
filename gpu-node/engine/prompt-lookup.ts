/**
 * Guesses the next tokens of a sequence from its own text: where its last few tokens stood before, what followed then follows
 * again (prompt lookup, Saxena 2023). One run checks all guesses; a lone sequence that copies gets several tokens from it.
 * Pure, but for the tally that a sequence keeps.
 */

/** Longest and shortest run of tokens that is looked up. */
const LONGEST_MATCH = 3
const SHORTEST_MATCH = 2
/** Steps without guesses after one that guessed all wrong: doubled each time, up to the most. */
const FIRST_REST = 8
const MOST_REST = 64

/** Up to `most` tokens that followed the latest earlier place of the last tokens; none when there is no such place. */
export function lookUp(tokens: Int32Array, length: number, most: number): Int32Array {
  for (let match = LONGEST_MATCH; match >= SHORTEST_MATCH; match--) {
    const place = latestPlace(tokens, length, match)
    if (place !== undefined) {
      return tokens.slice(place + match, Math.min(place + match + most, length))
    }
  }
  return new Int32Array(0)
}

function latestPlace(tokens: Int32Array, length: number, match: number): number | undefined {
  const pattern = length - match
  for (let start = pattern - 1; start >= 0; start--) {
    let same = 0
    while (same < match && tokens[start + same] === tokens[pattern + same]) {
      same++
    }
    if (same === match) {
      return start
    }
  }
  return undefined
}

/** How many guesses a sequence's next run should check: more while they come true, none for a while after they did not. */
export class GuessTally {
  readonly #most: number
  #size: number
  #rest = 0
  #nextRest = FIRST_REST

  constructor(most: number) {
    this.#most = most
    this.#size = Math.min(FIRST_SIZE, most)
  }

  /** Asked once a step. */
  next(): number {
    if (this.#rest > 0) {
      this.#rest--
      return 0
    }
    return this.#size
  }

  report(guessed: number, right: number): void {
    if (right === 0) {
      this.#rest = this.#nextRest
      this.#nextRest = Math.min(2 * this.#nextRest, MOST_REST)
      this.#size = Math.min(FIRST_SIZE, this.#most)
    } else {
      this.#nextRest = FIRST_REST
      this.#size =
        right === guessed ? Math.min(2 * this.#size + 1, this.#most) : Math.max(1, Math.min(right + 1, this.#most))
    }
  }
}

const FIRST_SIZE = 2
