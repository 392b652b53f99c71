/** Texts and numbers of single tokens, as replies show them. */

import { createDetokenizer } from '../text/detokenizer.ts'
import type { Tokenizer } from '../text/tokenizer.ts'

/** The token alone, its leading space kept; U+FFFD where it is part of a character. */
export function singleTokenText(tokenizer: Tokenizer, tokenId: number): string {
  const detokenizer = createDetokenizer(false)
  return detokenizer.push(tokenizer.pieceOf(tokenId)) + detokenizer.end()
}

/** The token's UTF-8 bytes, also where they are part of a character. */
export function tokenBytes(tokenizer: Tokenizer, tokenId: number): number[] {
  const piece = tokenizer.pieceOf(tokenId)
  return [...(piece.kind === 'bytes' ? piece.bytes : new TextEncoder().encode(piece.text))]
}

/** JSON has no NaN and no infinity. */
export function jsonNumber(value: number): number | null {
  return Number.isFinite(value) ? value : null
}

/** OpenAI's stand-in where a logprob is minus infinity; lorax-client too takes numbers only for generated tokens. */
export function finiteLogprob(value: number): number {
  return Number.isFinite(value) ? value : -9999
}
