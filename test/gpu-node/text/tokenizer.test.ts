import { readFile } from 'node:fs/promises'
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createDetokenizer } from '../../../gpu-node/text/detokenizer.ts'
import { createTokenizer, type Tokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'
import { sentencePieceFiles, sentencePieceTokenizer } from '../../support/tiny-tokenizer.ts'

const demoDirectory = 'models/demo/base'
const demoFiles = await readTokenizerFiles(demoDirectory)
const demo = createTokenizer(demoFiles)
const golden = JSON.parse(await readFile('models/demo/golden.json', 'utf8')) as {
  prompts: string[]
  prompt_ids: number[][]
  greedy_ids: Record<string, number[][]>
  greedy_text: Record<string, string[]>
}

/** As a stream does it: piece by piece. */
function decodePieces(tokenizer: Tokenizer, ids: number[]): string[] {
  const detokenizer = createDetokenizer(tokenizer.stripsLeadingSpace)
  return [...ids.map((id) => detokenizer.push(tokenizer.pieceOf(id))), detokenizer.end()]
}

describe('the demo tokenizer', () => {
  test('encodes the golden prompts to the ids of transformers', () => {
    expect(golden.prompts.map((prompt) => demo.encode(prompt, true))).toEqual(golden.prompt_ids)
  })

  test('decodes the golden answers to the texts of transformers', () => {
    for (const [name, runs] of Object.entries(golden.greedy_ids)) {
      expect(runs.map((ids) => demo.decode(ids, true))).toEqual(golden.greedy_text[name])
    }
  })

  test('knows its special tokens', () => {
    expect([0, 1, 2, 3, 4, 5].map((id) => demo.isSpecial(id))).toEqual([true, true, true, true, true, false])
  })
})

describe.each([
  ['byte-level', demo, new HubTokenizer(demoFiles.tokenizer, demoFiles.config)],
  [
    'sentencepiece',
    sentencePieceTokenizer(),
    new HubTokenizer(sentencePieceFiles().tokenizer, sentencePieceFiles().config),
  ],
] as const)('%s decoding', (_name, tokenizer, hub) => {
  const size = tokenizer.vocabulary().length

  test('piece by piece equals the library’s decoding of any ids at once', () => {
    const ids = fc.array(fc.nat(size - 1), { minLength: 1, maxLength: 40 })
    fc.assert(
      fc.property(ids, (tokenIds) => {
        const whole = hub.decode(tokenIds, { skip_special_tokens: false, clean_up_tokenization_spaces: false })
        // The library's byte fallback drops a byte order mark that starts a run of bytes; text is text here.
        fc.pre(!decodePieces(tokenizer, tokenIds).join('').includes('\uFEFF'))
        expect(decodePieces(tokenizer, tokenIds).join('')).toBe(whole)
      }),
    )
  })

  test('of any text comes back as that text, and never half a character', () => {
    const text = fc.string({ unit: 'grapheme', minLength: 1 }).filter((given) => !given.includes('▁'))
    fc.assert(
      fc.property(text, (given) => {
        const pieces = decodePieces(tokenizer, tokenizer.encode(given, false))
        expect(pieces.join('')).toBe(given)
        expect(pieces.some((piece) => /[\uFFFD\p{Cs}]/u.test(piece))).toBe(given.includes('\uFFFD'))
      }),
    )
  })
})

describe('beginning-of-sequence tokens', () => {
  test('stand before raw prompts, as the post-processor says, and not before templated ones', () => {
    const tokenizer = sentencePieceTokenizer()
    expect(tokenizer.encode('hello', true)[0]).toBe(1)
    expect(tokenizer.encode('hello', false)[0]).not.toBe(1)
  })

  test('an incomplete character at the end shows as U+FFFD', () => {
    const tokenizer = sentencePieceTokenizer()
    const firstByte = tokenizer.tokenId('<0xC3>') ?? 0
    expect(decodePieces(tokenizer, [firstByte])).toEqual(['', '\uFFFD'])
  })
})
