/** How much of a text one token can stand for, where a tokenizer's files say that none of the text is lost on the way. Pure. */

import { BYTE_OF_CHARACTER } from './token-pieces.ts'
import type { TokenizerJson } from './tokenizer-files.ts'

/** Bytes that UTF-8 never has; vocabularies may lack them. */
const isNeverUtf8 = (byte: number): boolean => byte === 0xc0 || byte === 0xc1 || byte >= 0xf5

/**
 * In UTF-16 code units. Finite for byte-level vocabularies that have all bytes and change nothing before: there every byte of
 * the text is in a token. Normalizers may shrink a text, added tokens may swallow the spaces beside them, and unknown ones
 * stand for any length.
 */
export function mostCharactersPerToken(tokenizer: TokenizerJson, words: Iterable<string>): number {
  const { normalizer, pre_tokenizer, added_tokens } = tokenizer
  const steps = flatten(pre_tokenizer)
  const swallows = added_tokens.some((token) => token.lstrip === true || token.rstrip === true)
  if (normalizer !== null || swallows || !steps.every(keepsAll) || steps.at(-1)?.type !== 'ByteLevel') {
    return Number.POSITIVE_INFINITY
  }
  let longest = 0
  const single = new Set<string>()
  for (const word of words) {
    longest = Math.max(longest, word.length)
    if (word.length === 1) {
      single.add(word)
    }
  }
  const hasBytes = [...BYTE_OF_CHARACTER].every(([letter, byte]) => isNeverUtf8(byte) || single.has(letter))
  return hasBytes ? longest : Number.POSITIVE_INFINITY
}

interface Step {
  type?: unknown
  behavior?: unknown
  invert?: unknown
}

/** An inverted split drops what its pattern doesn't match. */
function keepsAll({ type, behavior, invert }: Step): boolean {
  return type === 'Split'
    ? typeof behavior === 'string' && behavior.toLowerCase() !== 'removed' && invert !== true
    : type === 'Digits' || type === 'ByteLevel'
}

function flatten(step: unknown): Step[] {
  if (typeof step !== 'object' || step === null) {
    return []
  }
  return 'pretokenizers' in step && Array.isArray(step.pretokenizers) ? step.pretokenizers.flatMap(flatten) : [step]
}
