/** For replies that are sent whole: all choices of a generation, and which of them are returned. */

import type { Choice, ChoiceFinish, ChoiceToken } from './choice.ts'
import type { Generation } from './generation.ts'

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

export async function collectChoices(generation: Generation, bestOf: number): Promise<ChoiceResult[]> {
  const tokens = generation.choices.map((): ChoiceToken[] => [])
  for await (const events of generation.events) {
    for (const event of events) {
      if (event.kind === 'token') {
        tokens[event.choice]?.push(event.token)
      }
    }
  }
  return generation.choices.map((choice, i) => ({
    sequence: i,
    prompt: Math.floor(i / bestOf),
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
