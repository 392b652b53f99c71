/**
 * A prompt that `echo` puts before its answer, in parts that fit one event each: the edge takes no event beyond 4 MiB, and
 * clients join texts and scores. The parts have no id, so the edge passes them on together with the first token.
 */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import type { Generation } from './generation.ts'
import { type LoggedToken, promptEntries } from './openai-reply.ts'

/** Scored tokens and alternatives, some 80 bytes each. */
const SCORES_PER_EVENT = 10_000
/** UTF-16 units of the prompt's text. */
const TEXT_PER_EVENT = 262_144

export interface EchoPart {
  text: string
  /** Made when asked for: the scores are known when the first token comes. */
  tokens: () => LoggedToken[]
}

type Asked = Pick<GenerateRequest, 'echoPrompt' | 'bestOf' | 'alternatives'>

/** None where nothing is echoed. Texts and tokens of a part are about the same share of the prompt. */
export function echoParts(
  { echoPrompt, bestOf, alternatives }: Asked,
  generation: Generation,
  choice: number,
): EchoPart[] {
  const index = Math.floor(choice / bestOf)
  const prompt = generation.prompts[index]
  if (!echoPrompt || prompt === undefined) {
    return []
  }
  const scores = prompt.tokens.length * (1 + alternatives)
  const count = Math.max(1, Math.ceil(scores / SCORES_PER_EVENT), Math.ceil(prompt.text.length / TEXT_PER_EVENT))
  const tokensUpTo = (part: number): number => Math.floor((part * prompt.tokens.length) / count)
  const textUpTo = (part: number): number =>
    betweenCharacters(prompt.text, Math.floor((part * prompt.text.length) / count))
  return Array.from({ length: count }, (_, part) => ({
    text: prompt.text.slice(textUpTo(part), textUpTo(part + 1)),
    tokens: () => promptEntries(prompt, generation.promptScores[index]).slice(tokensUpTo(part), tokensUpTo(part + 1)),
  }))
}

/** Not between the halves of a surrogate pair. */
function betweenCharacters(text: string, at: number): number {
  const unit = text.charCodeAt(at)
  return unit >= 0xdc00 && unit <= 0xdfff ? at - 1 : at
}
