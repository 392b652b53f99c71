/** One answer in the making: the engine's tokens of one sequence to text, and when it ends. */

import type { TokenAlternative } from '../engine/engine-types.ts'
import { createTextStream, type TextStreamOptions } from '../text/text-stream.ts'
import type { Tokenizer } from '../text/tokenizer.ts'

/** `stop`: a stop string; `eos`: the model ended it. */
export type ChoiceFinish = 'eos' | 'stop' | 'length' | 'grammar_end'

export interface ChoiceToken {
  tokenId: number
  /** With special tokens, as LoRAX shows tokens. */
  tokenText: string
  /** Visible text that this token released. */
  text: string
  special: boolean
  logprob: number
  alternatives: TokenAlternative[]
}

export type ChoiceEvent =
  | { kind: 'token'; choice: number; token: ChoiceToken }
  /** `tail`: visible text that was held back and no token will release. */
  | { kind: 'end'; choice: number; finish: ChoiceFinish; tail: string }

export interface Choice {
  readonly index: number
  /** All tokens, delivered ones included. */
  readonly tokenCount: number
  readonly text: string
  /** The beginning of `text` that came with replayed tokens. */
  readonly replayedText: string
  readonly logprobSum: number
  readonly finish: ChoiceFinish | undefined
  /** Replays a token that the client has. True: the answer is complete with it. */
  replay(tokenId: number): boolean
  push(token: { tokenId: number; logprob: number; alternatives?: TokenAlternative[] }): ChoiceEvent[]
  /** Nothing after the end; the first reason counts. */
  end(finish: ChoiceFinish): ChoiceEvent[]
}

/**
 * Without what ended the answer: its end token, and the tokens of a stop string, whose text was cut off. A token that the cut
 * goes through stays. `tokens` are the last ones of the answer, or all.
 */
export function contentTokens(tokens: readonly ChoiceToken[], finish: ChoiceFinish): ChoiceToken[] {
  switch (finish) {
    case 'eos':
      return tokens.at(-1)?.special === true ? tokens.slice(0, -1) : [...tokens]
    case 'stop':
      return tokens.slice(0, tokens.findLastIndex(({ text }) => text !== '') + 1)
    case 'length':
    case 'grammar_end':
      return [...tokens]
  }
}

export function createChoice(index: number, tokenizer: Tokenizer, options: TextStreamOptions): Choice {
  const stream = createTextStream(tokenizer, options)
  let tokenCount = 0
  let replayedLength = 0
  let logprobSum = 0
  let finish: ChoiceFinish | undefined
  const end = (reason: ChoiceFinish): ChoiceEvent[] => {
    if (finish !== undefined) {
      return []
    }
    finish = reason
    return [{ kind: 'end', choice: index, finish: reason, tail: reason === 'stop' ? '' : stream.end() }]
  }
  return {
    index,
    get tokenCount() {
      return tokenCount
    },
    get text() {
      return stream.text
    },
    get replayedText() {
      return stream.text.slice(0, replayedLength)
    },
    get logprobSum() {
      return logprobSum
    },
    get finish() {
      return finish
    },
    replay: (tokenId) => {
      tokenCount++
      const { stopped } = stream.push(tokenId)
      replayedLength = stream.text.length
      return stopped
    },
    push: (token) => {
      if (finish !== undefined) {
        return []
      }
      tokenCount++
      logprobSum += token.logprob
      const step = stream.push(token.tokenId)
      const shown: ChoiceToken = {
        tokenId: token.tokenId,
        tokenText: step.tokenText,
        text: step.text,
        special: tokenizer.isSpecial(token.tokenId),
        logprob: token.logprob,
        alternatives: token.alternatives ?? [],
      }
      return [{ kind: 'token', choice: index, token: shown }, ...(step.stopped ? end('stop') : [])]
    },
    end,
  }
}
