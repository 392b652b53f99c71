/** For replies that are sent whole: all choices of a generation, and which of them are returned. */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { Choice, ChoiceFinish, ChoiceToken } from './choice.ts'
import type { Generation } from './generation.ts'
import type { PreparedPrompt } from './prepare-prompt.ts'

export interface ChoiceResult {
  /** Position among the request's sequences. */
  sequence: number
  /** Which prompt it answers. */
  prompt: number
  text: string
  finish: ChoiceFinish
  tokens: ChoiceToken[]
  seed: number
  meanLogprob: number
}

type Wanted = Pick<GenerateRequest, 'bestOf' | 'alternatives' | 'promptLogprobs'>

/** Each choice scores its prompt, and repeats the scores. */
export function promptScoreCount(
  prompts: readonly Pick<PreparedPrompt, 'tokens'>[],
  { bestOf, alternatives, promptLogprobs }: Wanted,
): number {
  const promptTokens = prompts.reduce((sum, prompt) => sum + prompt.tokens.length, 0)
  return promptLogprobs ? bestOf * promptTokens * (1 + alternatives) : 0
}

/**
 * `tells`: the reply lists its tokens, not their text alone. Throws `field_invalid`, and ends the generation, when the reply
 * grows beyond what can be sent whole: the edge holds it before it sends it.
 */
export async function collectChoices(
  generation: Generation,
  wanted: Wanted,
  tells: boolean,
  mostScores: number,
): Promise<ChoiceResult[]> {
  const tokens = generation.choices.map((): ChoiceToken[] => [])
  let carried = 0
  const carry = (more: number): void => {
    carried += more
    if (carried > mostScores) {
      generation.abort()
      const ask = 'ask for fewer tokens, choices or alternatives, or for a stream'
      throw new RingletError('field_invalid', `a reply carries up to ${mostScores} scores of tokens; ${ask}`)
    }
  }
  carry(promptScoreCount(generation.prompts, wanted))
  for await (const events of generation.events) {
    for (const event of events) {
      if (event.kind === 'token') {
        tokens[event.choice]?.push(event.token)
        carry((tells ? 1 : 0) + event.token.alternatives.length)
      }
    }
  }
  return generation.choices.map((choice, i) => ({
    sequence: i,
    prompt: Math.floor(i / wanted.bestOf),
    text: choice.text,
    finish: finishOf(choice),
    tokens: tokens[i] ?? [],
    seed: generation.seeds[i] ?? 0,
    meanLogprob: choice.tokenCount === 0 ? 0 : choice.logprobSum / choice.tokenCount,
  }))
}

function finishOf(choice: Choice): ChoiceFinish {
  if (choice.finish === undefined) {
    throw new Error('a generation ended without the end of all its choices')
  }
  return choice.finish
}

/** The best of a prompt's sequences first, by mean logprob; equal ones in order. */
export function bestFirst(results: readonly ChoiceResult[]): ChoiceResult[] {
  return [...results].sort((a, b) => b.meanLogprob - a.meanLogprob || a.sequence - b.sequence)
}
