/** The vocabulary as grammars see it: the bytes that each token adds to the text, in memory that all threads share. */

import type { Tokenizer } from '../text/tokenizer.ts'

export interface GrammarVocabulary {
  /** Width of the logits: masks have a bit for each of them. */
  width: number
  /** Token t's bytes are `bytes[offsets[t] … offsets[t + 1])`. Empty: the token never matches (special tokens, padding). */
  bytes: Uint8Array<SharedArrayBuffer>
  offsets: Int32Array<SharedArrayBuffer>
  /** Allowed exactly where the grammar may end. */
  stopTokens: readonly number[]
}

/**
 * Stands before a special token's text, for the special tokens that a tool format writes. No JSON string may hold it, so that
 * inside the arguments of a call such a token cannot come up.
 */
export const MARKER = '\u0001'
const MARKER_BYTE = 1

/** How a grammar writes `text` where it may be a special token. */
export function spellMarker(tokenizer: Tokenizer, text: string): string {
  const tokenId = text === '' ? undefined : tokenizer.tokenId(text)
  return tokenId !== undefined && tokenizer.isSpecial(tokenId) ? MARKER + text : text
}

/** `markers`: texts that grammars may ask for though they are special tokens. */
export function grammarVocabulary(
  tokenizer: Tokenizer,
  width: number,
  stopTokens: readonly number[],
  markers: readonly string[] = [],
): GrammarVocabulary {
  const encoder = new TextEncoder()
  const markerIds = new Map(markers.map((marker) => [tokenizer.tokenId(marker), marker]))
  const stops = new Set(stopTokens)
  const pieces: Uint8Array[] = []
  for (let id = 0; id < width; id++) {
    const marker = markerIds.get(id)
    if (marker !== undefined && tokenizer.isSpecial(id)) {
      pieces.push(encoder.encode(MARKER + marker))
    } else if (stops.has(id) || tokenizer.isSpecial(id)) {
      pieces.push(new Uint8Array(0))
    } else {
      const piece = tokenizer.pieceOf(id)
      const bytes = piece.kind === 'bytes' ? piece.bytes : encoder.encode(piece.text)
      // The marker's own byte would let a model spell a special token out in letters.
      pieces.push(bytes.includes(MARKER_BYTE) ? new Uint8Array(0) : bytes)
    }
  }
  const total = pieces.reduce((sum, piece) => sum + piece.length, 0)
  const bytes = new Uint8Array(new SharedArrayBuffer(total))
  const offsets = new Int32Array(new SharedArrayBuffer((width + 1) * Int32Array.BYTES_PER_ELEMENT))
  let at = 0
  for (const [id, piece] of pieces.entries()) {
    bytes.set(piece, at)
    at += piece.length
    offsets[id + 1] = at
  }
  return { width, bytes, offsets, stopTokens }
}

/** Copies, since xgrammar's glue takes no view of shared memory. */
export function vocabularyPieces(vocabulary: GrammarVocabulary): Uint8Array[] {
  const { width, bytes, offsets } = vocabulary
  return Array.from({ length: width }, (_, id) => bytes.slice(offsets[id], offsets[id + 1]))
}
