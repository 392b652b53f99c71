/** Tokens to text, one at a time: never half a UTF-8 character, and at the end the same as decoding all tokens at once. */

import type { TokenPiece } from './token-pieces.ts'

export interface Detokenizer {
  /** The text that this token completes; empty while a character is incomplete. */
  push(piece: TokenPiece): string
  /** What is left: U+FFFD for an incomplete character. */
  end(): string
}

/** `stripLeadingSpace`: drop one space at the very start, for decoders with sentencepiece's dummy prefix. */
export function createDetokenizer(stripLeadingSpace: boolean): Detokenizer {
  // A byte order mark is text like any other.
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  let atStart = stripLeadingSpace
  const strip = (text: string): string => {
    if (!atStart || text === '') {
      return text
    }
    atStart = false
    return text.startsWith(' ') ? text.slice(1) : text
  }
  return {
    push: (piece) =>
      strip(piece.kind === 'bytes' ? decoder.decode(piece.bytes, { stream: true }) : decoder.decode() + piece.text),
    end: () => strip(decoder.decode()),
  }
}
