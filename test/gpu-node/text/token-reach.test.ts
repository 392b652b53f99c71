import { expect, test } from 'vitest'
import { createTokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles, type TokenizerJson } from '../../../gpu-node/text/tokenizer-files.ts'
import { sentencePieceTokenizer } from '../../support/tiny-tokenizer.ts'

const { tokenizer: json, config } = await readTokenizerFiles('models/demo/base')

function reachWith(change: Partial<TokenizerJson>): number {
  return createTokenizer({ tokenizer: { ...structuredClone(json), ...change }, config }).mostCharactersPerToken
}

test('a byte-level token stands for at most as many characters as the longest has bytes', () => {
  expect(reachWith({})).toBe(13)
  const split = { type: 'Split', pattern: { Regex: '\\d' }, behavior: 'Isolated', invert: false }
  expect(reachWith({ pre_tokenizer: { type: 'Sequence', pretokenizers: [split, json.pre_tokenizer] } })).toBe(13)
})

test.each<[string, Partial<TokenizerJson>]>([
  ['a normalizer', { normalizer: { type: 'NFC' } }],
  ['tokens that take the spaces beside them', { added_tokens: [{ ...json.added_tokens[0]!, lstrip: true }] }],
  [
    'a split that drops text',
    {
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [{ type: 'Split', pattern: { String: ' ' }, behavior: 'Removed' }, json.pre_tokenizer],
      },
    },
  ],
])('with %s nothing can be said', (_what, change) => {
  expect(reachWith(change)).toBe(Number.POSITIVE_INFINITY)
})

test('nor of a sentencepiece vocabulary', () => {
  expect(sentencePieceTokenizer().mostCharactersPerToken).toBe(Number.POSITIVE_INFINITY)
})
