/** What each token does to a string that it continues: how many characters it adds, and whether it closes the string. */

import type { GrammarVocabulary } from './grammar-vocabulary.ts'

const QUOTE = 0x22
const BACKSLASH = 0x5c
/** Longer tokens count as this long, which no bound that is nearly reached allows either. */
const MAX_LENGTH = 64

interface StartTable {
  /** Characters up to the first closing quote, or all of them. */
  lengths: Uint8Array
  closes: Uint8Array
  /** Bit masks by length, made when first asked for. */
  notLonger: (Int32Array | undefined)[]
  closesShorter: (Int32Array | undefined)[]
}

export class TokenLengths {
  readonly #vocabulary: GrammarVocabulary
  /** For a string that goes on, and for one that goes on after a backslash. */
  readonly #plain: StartTable
  readonly #escaped: StartTable

  constructor(vocabulary: GrammarVocabulary) {
    this.#vocabulary = vocabulary
    this.#plain = createTable(vocabulary, false)
    this.#escaped = createTable(vocabulary, true)
  }

  bytesOf(tokenId: number): Uint8Array {
    const { bytes, offsets } = this.#vocabulary
    return bytes.subarray(offsets[tokenId], offsets[tokenId + 1])
  }

  /** Tokens that add at most `room` characters; `undefined`: all do. */
  notLonger(room: number, escaped: boolean): Int32Array | undefined {
    if (room >= MAX_LENGTH) {
      return undefined
    }
    const table = escaped ? this.#escaped : this.#plain
    table.notLonger[room] ??= this.#maskOf((tokenId) => (table.lengths[tokenId] ?? 0) <= room)
    return table.notLonger[room]
  }

  /** Tokens that close the string with fewer than `missing` characters; `undefined`: `missing` is 0. */
  closesShorter(missing: number, escaped: boolean): Int32Array | undefined {
    if (missing <= 0) {
      return undefined
    }
    const table = escaped ? this.#escaped : this.#plain
    const at = Math.min(missing, MAX_LENGTH)
    table.closesShorter[at] ??= this.#maskOf(
      (tokenId) => table.closes[tokenId] === 1 && (table.lengths[tokenId] ?? 0) < at,
    )
    return table.closesShorter[at]
  }

  /**
   * Tokens that open a string and write more than `shortest` characters into it, or close one that they opened: their effect
   * depends on where they come, so they are tried one by one. None for bounds beyond the length of tokens.
   */
  openers(shortest: number, anyMinimum: boolean): number[] {
    const found: number[] = []
    for (let tokenId = 0; tokenId < this.#vocabulary.width; tokenId++) {
      const { quotes, longest } = runs(this.bytesOf(tokenId))
      if (quotes > 0 && (longest > shortest || (anyMinimum && quotes > 1))) {
        found.push(tokenId)
      }
    }
    return found
  }

  #maskOf(has: (tokenId: number) => boolean): Int32Array {
    const { width } = this.#vocabulary
    const mask = new Int32Array(Math.ceil(width / 32))
    for (let tokenId = 0; tokenId < width; tokenId++) {
      if (has(tokenId)) {
        mask[tokenId >> 5] = (mask[tokenId >> 5] ?? 0) | (1 << (tokenId & 31))
      }
    }
    return mask
  }
}

function createTable({ width, bytes, offsets }: GrammarVocabulary, afterBackslash: boolean): StartTable {
  const lengths = new Uint8Array(width)
  const closes = new Uint8Array(width)
  for (let tokenId = 0; tokenId < width; tokenId++) {
    let escaped = afterBackslash
    let length = 0
    for (let i = offsets[tokenId] ?? 0; i < (offsets[tokenId + 1] ?? 0); i++) {
      const byte = bytes[i] ?? 0
      if (escaped) {
        escaped = false
        continue
      }
      if (byte === QUOTE) {
        closes[tokenId] = 1
        break
      }
      escaped = byte === BACKSLASH
      length += (byte & 0xc0) === 0x80 ? 0 : 1
    }
    lengths[tokenId] = Math.min(length, MAX_LENGTH)
  }
  return { lengths, closes, notLonger: [], closesShorter: [] }
}

/** Quotes in the token, and the longest run of characters after one of them. */
function runs(bytes: Uint8Array): { quotes: number; longest: number } {
  let quotes = 0
  let run = 0
  let longest = 0
  for (const byte of bytes) {
    if (byte === QUOTE) {
      quotes += 1
      run = 0
    } else if (quotes > 0 && (byte & 0xc0) !== 0x80) {
      run += 1
      longest = Math.max(longest, run)
    }
  }
  return { quotes, longest }
}
