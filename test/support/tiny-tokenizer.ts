/** A sentencepiece-style tokenizer of a few hundred tokens (byte fallback, dummy prefix), built in memory. */

import { createTokenizer, type Tokenizer } from '../../gpu-node/text/tokenizer.ts'
import type { TokenizerFiles } from '../../gpu-node/text/tokenizer-files.ts'

export function sentencePieceFiles(): TokenizerFiles {
  const words = ['▁', ...'abcdefghijklmnopqrstuvwxyz'].concat(['▁a', '▁b', 'he', 'll', 'hell', 'hello', '▁hello', 'é'])
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`)
  const vocab = Object.fromEntries(['<unk>', '<s>', '</s>', ...bytes, ...words].map((token, id) => [token, id]))
  const special = (id: number, content: string) => ({ id, content, special: true, normalized: false })
  return {
    tokenizer: {
      added_tokens: [special(0, '<unk>'), special(1, '<s>'), special(2, '</s>')],
      normalizer: {
        type: 'Sequence',
        normalizers: [
          { type: 'Prepend', prepend: '▁' },
          { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
        ],
      },
      pre_tokenizer: null,
      post_processor: {
        type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        pair: [],
        special_tokens: {},
      },
      decoder: {
        type: 'Sequence',
        decoders: [
          { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          { type: 'Strip', content: ' ', start: 1, stop: 0 },
        ],
      },
      model: {
        type: 'BPE',
        unk_token: '<unk>',
        byte_fallback: true,
        fuse_unk: true,
        vocab,
        merges: ['▁ a', '▁ b', 'h e', 'l l', 'he ll', 'hell o', '▁ hello'],
      },
    },
    config: { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>' },
    chatTemplates: new Map(),
    digest: 'built in memory',
  }
}

export function sentencePieceTokenizer(): Tokenizer {
  return createTokenizer(sentencePieceFiles())
}
