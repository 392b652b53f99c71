/**
 * What each token adds to the text: bytes (byte-level BPE, sentencepiece's byte fallback) or characters. Reads the decoder
 * of tokenizer.json; the library's own decoder only takes whole sequences, and scans all added tokens for each.
 */

import type { TokenizerJson } from './tokenizer-files.ts'

export type TokenPiece = { kind: 'bytes'; bytes: Uint8Array } | { kind: 'text'; text: string }

export interface TokenPieces {
  /** Ids beyond the vocabulary (padding of the embedding matrix) add nothing. */
  pieceOf(tokenId: number): TokenPiece
  /** The decoder drops one space at the very start of a text (sentencepiece's dummy prefix). */
  stripsLeadingSpace: boolean
}

type Decoder = NonNullable<TokenizerJson['decoder']>

export function createTokenPieces(
  decoder: TokenizerJson['decoder'],
  vocabulary: (tokenId: number) => string | undefined,
  addedTexts: ReadonlySet<string>,
): TokenPieces {
  const rules = readRules(decoder)
  const pieces = new Map<number, TokenPiece>()
  return {
    stripsLeadingSpace: rules.stripsLeadingSpace,
    pieceOf: (tokenId) => {
      let piece = pieces.get(tokenId)
      if (piece === undefined) {
        const raw = vocabulary(tokenId) ?? ''
        piece = rules.byteLevel
          ? addedTexts.has(raw)
            ? { kind: 'text', text: raw }
            : { kind: 'bytes', bytes: fromByteLevel(raw) }
          : fromSentencePiece(raw, rules)
        pieces.set(tokenId, piece)
      }
      return piece
    },
  }
}

interface Rules {
  byteLevel: boolean
  byteFallback: boolean
  replacements: { pattern: string; content: string }[]
  stripsLeadingSpace: boolean
}

function readRules(decoder: TokenizerJson['decoder']): Rules {
  const rules: Rules = { byteLevel: false, byteFallback: false, replacements: [], stripsLeadingSpace: false }
  for (const step of flatten(decoder)) {
    switch (step.type) {
      case 'ByteLevel':
        rules.byteLevel = true
        break
      case 'ByteFallback':
        rules.byteFallback = true
        break
      case 'Replace':
        rules.replacements.push({ pattern: replacePattern(step), content: String(step.content ?? '') })
        break
      case 'Metaspace':
        rules.replacements.push({ pattern: String(step.replacement ?? '▁'), content: ' ' })
        rules.stripsLeadingSpace = step.prepend_scheme !== 'never' && step.add_prefix_space !== false
        break
      case 'Strip':
        if (step.content !== ' ' || step.start !== 1 || (step.stop ?? 0) !== 0) {
          throw new Error(`tokenizer.json: decoder Strip ${JSON.stringify(step)} is not supported`)
        }
        rules.stripsLeadingSpace = true
        break
      case 'Fuse':
        break
      default:
        throw new Error(`tokenizer.json: decoder type ${step.type} is not supported`)
    }
  }
  return rules
}

function flatten(decoder: TokenizerJson['decoder']): Decoder[] {
  if (decoder === null) {
    throw new Error('tokenizer.json has no decoder')
  }
  return decoder.type === 'Sequence' && Array.isArray(decoder.decoders)
    ? decoder.decoders.flatMap((step: Decoder) => flatten(step))
    : [decoder]
}

function replacePattern(step: Decoder): string {
  const pattern = step.pattern
  if (typeof pattern === 'object' && pattern !== null && 'String' in pattern && typeof pattern.String === 'string') {
    return pattern.String
  }
  throw new Error(`tokenizer.json: decoder Replace ${JSON.stringify(step)} is not supported`)
}

function fromSentencePiece(raw: string, rules: Rules): TokenPiece {
  const byte = rules.byteFallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(raw)?.[1] : undefined
  if (byte !== undefined) {
    return { kind: 'bytes', bytes: Uint8Array.of(Number.parseInt(byte, 16)) }
  }
  const text = rules.replacements.reduce((sum, { pattern, content }) => sum.replaceAll(pattern, content), raw)
  return { kind: 'text', text }
}

/** GPT-2's printable stand-ins for the 256 bytes; a token with any other character stands for itself. */
function fromByteLevel(raw: string): Uint8Array {
  const characters = [...raw]
  const bytes = new Uint8Array(characters.length)
  for (const [i, character] of characters.entries()) {
    const byte = BYTE_OF_CHARACTER.get(character)
    if (byte === undefined) {
      return new TextEncoder().encode(raw)
    }
    bytes[i] = byte
  }
  return bytes
}

/** Bytes that print stand for themselves; the others take the code points from 256 on, in order (GPT-2, encoder.py). */
export const BYTE_OF_CHARACTER = new Map(
  (() => {
    const prints = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    let next = 256
    return Array.from({ length: 256 }, (_, byte) => [String.fromCodePoint(prints(byte) ? byte : next++), byte] as const)
  })(),
)
