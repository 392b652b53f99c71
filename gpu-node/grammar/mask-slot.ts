/**
 * The shared memory between the engine and a matcher for one sequence: a state, a flag, and the mask of the next token.
 * The engine sets `PENDING` before it tells of a token; the matcher then writes the mask and sets the state, in this order.
 */

const STATE = 0
/** Set by the engine when it has found the mask pending: it wants to be told. */
const WANTED = 1
const HEADER = 2

export const PENDING = 0
export const READY = 1
/** Nothing may follow. */
export const ENDED = 2
/** The matcher has no such grammar (its thread was replaced). */
export const LOST = 3
/** A token does not fit the grammar. */
export const REJECTED = 4

export type SlotState = typeof PENDING | typeof READY | typeof ENDED | typeof LOST | typeof REJECTED

export class MaskSlot {
  readonly words: Int32Array<SharedArrayBuffer>
  readonly mask: Int32Array<SharedArrayBuffer>

  constructor(words: Int32Array<SharedArrayBuffer>) {
    this.words = words
    this.mask = words.subarray(HEADER)
  }

  /** `width`: tokens in a mask. */
  static create(width: number): MaskSlot {
    const words = HEADER + Math.ceil(width / 32)
    return new MaskSlot(new Int32Array(new SharedArrayBuffer(words * Int32Array.BYTES_PER_ELEMENT)))
  }

  /** For the engine. */
  setPending(): void {
    Atomics.store(this.words, STATE, PENDING)
  }

  /** For the engine: after `PENDING`, the matcher's next `publish` returns true. */
  read(): SlotState {
    const state = Atomics.load(this.words, STATE)
    if (state !== PENDING) {
      return toState(state)
    }
    Atomics.store(this.words, WANTED, 1)
    // The matcher may have published between the two; then nobody would tell.
    return toState(Atomics.load(this.words, STATE))
  }

  /** For the matcher. True: the engine waits to be told. */
  publish(state: SlotState): boolean {
    Atomics.store(this.words, STATE, state)
    return Atomics.exchange(this.words, WANTED, 0) === 1
  }
}

function toState(word: number): SlotState {
  switch (word) {
    case PENDING:
    case READY:
    case ENDED:
    case LOST:
    case REJECTED:
      return word
    default:
      throw new RangeError(`a mask slot is in state ${word}`)
  }
}
