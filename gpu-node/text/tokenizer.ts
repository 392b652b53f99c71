/** A checkpoint's tokenizer: text to ids as transformers encodes it, and what each id adds to the text. */

import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers'
import { createDetokenizer } from './detokenizer.ts'
import { createTokenPieces, type TokenPieces } from './token-pieces.ts'
import { mostCharactersPerToken } from './token-reach.ts'
import { specialTexts, type TokenizerFiles } from './tokenizer-files.ts'

export interface Tokenizer extends TokenPieces {
  /** `addSpecialTokens`: as the post-processor says, e.g. BOS in front of a raw prompt. */
  encode(text: string, addSpecialTokens: boolean): number[]
  /** `skipSpecial`: without the text of special tokens. */
  decode(tokenIds: Iterable<number>, skipSpecial: boolean): string
  /** The vocabulary's own spelling, e.g. `Ġthe`; `undefined` beyond the vocabulary. */
  rawToken(tokenId: number): string | undefined
  tokenId(raw: string): number | undefined
  isSpecial(tokenId: number): boolean
  readonly bosText: string | undefined
  readonly eosText: string | undefined
  /** No token stands for more of a text; Infinity where the files don't say. */
  readonly mostCharactersPerToken: number
  /** Raw spellings by id, holes as empty strings; for grammars. */
  vocabulary(): string[]
}

/** `endTokens`: ids that end a sequence; never visible text, even where the files don't call them special. */
export function createTokenizer(
  { tokenizer, config }: Pick<TokenizerFiles, 'tokenizer' | 'config'>,
  endTokens: readonly number[] = [],
): Tokenizer {
  const hub = new HubTokenizer(tokenizer, config)
  const addedTexts = new Set(tokenizer.added_tokens.map((token) => token.content))
  const declared = [...specialTexts({ tokenizer, config })].map((text) => hub.token_to_id(text))
  const specialIds = new Set([...declared.filter((id) => id !== undefined), ...endTokens])
  const rawToken = (tokenId: number): string | undefined => hub.id_to_token(tokenId)
  const pieces = createTokenPieces(tokenizer.decoder, rawToken, addedTexts)
  return {
    ...pieces,
    rawToken,
    tokenId: (raw) => hub.token_to_id(raw),
    isSpecial: (tokenId) => specialIds.has(tokenId),
    bosText: config.bos_token ?? undefined,
    eosText: config.eos_token ?? undefined,
    mostCharactersPerToken: mostCharactersPerToken(tokenizer, hub.get_vocab(true).keys()),
    encode: (text, addSpecialTokens) =>
      text === '' && !addSpecialTokens ? [] : hub.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode: (tokenIds, skipSpecial) => {
      const detokenizer = createDetokenizer(pieces.stripsLeadingSpace)
      let text = ''
      for (const id of tokenIds) {
        if (!skipSpecial || !specialIds.has(id)) {
          text += detokenizer.push(pieces.pieceOf(id))
        }
      }
      return text + detokenizer.end()
    },
    vocabulary: () => {
      const words: string[] = []
      for (const [word, id] of hub.get_vocab(true)) {
        words[id] = word
      }
      return Array.from(words, (word) => word ?? '')
    },
  }
}
