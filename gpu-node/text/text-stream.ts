/** The text of one generated sequence as it grows: token texts, visible text, stop strings. */

import { createDetokenizer } from './detokenizer.ts'
import { createStopScanner } from './stop-scanner.ts'
import type { Tokenizer } from './tokenizer.ts'

export interface TextStreamOptions {
  stop: readonly string[]
  /** LoRAX: the matched text stays, nothing is held back. OpenAI: it is cut off, and what may begin it waits. */
  keepStopText: boolean
  /** The text stands alone, so sentencepiece's leading space goes; not when it continues an echoed prompt. */
  standsAlone: boolean
  /** Special tokens whose text is visible all the same: what a tool format writes. */
  shownSpecial?: ReadonlySet<number>
}

export interface TextStep {
  /** The token's own text, special tokens included, in LoRAX's sense; empty while a character is incomplete. */
  tokenText: string
  /** Visible text that may be sent now. */
  text: string
  /** A stop string is complete: the sequence ends with this token. */
  stopped: boolean
}

export interface TextStream {
  push(tokenId: number): TextStep
  /** The sequence ended without a stop string: the rest of the visible text. */
  end(): string
  /** All visible text so far, without what is held back. */
  readonly text: string
}

export function createTextStream(tokenizer: Tokenizer, options: TextStreamOptions): TextStream {
  // Special tokens have no visible text, so a stop that is one is matched by its id.
  const stopIds = new Set(options.stop.map((stop) => tokenizer.tokenId(stop)).filter((id) => id !== undefined))
  const ofTokens = createDetokenizer(false)
  const ofText = createDetokenizer(options.standsAlone && tokenizer.stripsLeadingSpace)
  const scanner = createStopScanner(options.stop)
  let text = ''

  const scan = (visible: string): { text: string; stopped: boolean; cut: number } => {
    const { released, match } = scanner.push(visible)
    if (!options.keepStopText) {
      return { text: released, stopped: match !== undefined, cut: 0 }
    }
    const cut = match?.after.length ?? 0
    return { text: visible.slice(0, visible.length - cut), stopped: match !== undefined, cut }
  }

  return {
    get text() {
      return text
    },
    push: (tokenId) => {
      const piece = tokenizer.pieceOf(tokenId)
      const special = tokenizer.isSpecial(tokenId) && options.shownSpecial?.has(tokenId) !== true
      const tokenText = ofTokens.push(piece)
      const step = scan(special ? '' : ofText.push(piece))
      text += step.text
      const stopped = step.stopped || (special && stopIds.has(tokenId))
      return { tokenText: tokenText.slice(0, tokenText.length - step.cut), text: step.text, stopped }
    },
    end: () => {
      const rest = scan(ofText.end())
      const tail = rest.text + (rest.stopped || options.keepStopText ? '' : scanner.end())
      text += tail
      return tail
    },
  }
}
