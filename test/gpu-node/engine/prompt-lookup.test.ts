import { expect, test } from 'vitest'
import type { PrefillChunk } from '../../../gpu-node/engine/engine-types.ts'
import { GuessTally, lookUp } from '../../../gpu-node/engine/prompt-lookup.ts'
import { ArithmeticRunner, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { EngineHarness, GREEDY, requestOf } from '../../support/engine-harness.ts'

const lookUpIn = (tokens: number[], most: number) => [
  ...lookUp(Int32Array.from([...tokens, 99, 99]), tokens.length, most),
]

test('what followed the last tokens before is guessed to follow again', () => {
  expect(lookUpIn([1, 2, 3, 4, 5, 6, 1, 2, 3], 2)).toEqual([4, 5])
  expect(lookUpIn([1, 2, 3, 4, 5, 6, 1, 2, 3], 10)).toEqual([4, 5, 6, 1, 2, 3])
})

test('the longest match counts, of equal ones the latest', () => {
  expect(lookUpIn([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], 1)).toEqual([5])
  expect(lookUpIn([1, 2, 5, 1, 2, 6, 9, 1, 2], 1)).toEqual([6])
})

test('without an earlier place nothing is guessed', () => {
  expect(lookUpIn([1, 2, 3, 4], 5)).toEqual([])
  expect(lookUpIn([1], 5)).toEqual([])
  expect(lookUpIn([1, 2, 3, 1, 2, 3], 0)).toEqual([])
})

test('guesses grow while they come true and rest after they did not', () => {
  const tally = new GuessTally(9)
  expect(tally.next()).toBe(2)
  tally.report(2, 2)
  expect(tally.next()).toBe(5)
  tally.report(5, 5)
  expect(tally.next()).toBe(9)
  tally.report(9, 2)
  expect(tally.next()).toBe(3)
  const restAfter = () => {
    tally.report(2, 0)
    for (let steps = 0; ; steps++) {
      if (tally.next() > 0) {
        return steps
      }
    }
  }
  expect([restAfter(), restAfter(), restAfter(), restAfter(), restAfter()]).toEqual([8, 16, 32, 64, 64])
  tally.report(2, 1)
  expect(restAfter()).toBe(8)
})

/** Logits that favour the token that comes next in a cycle of ten: a text that repeats itself, but for a break at times. */
class RepeatingRunner extends ArithmeticRunner {
  runs = 0

  override prefill(chunk: PrefillChunk): Float32Array {
    this.runs++
    const logits = super.prefill(chunk)
    for (const [i, token] of chunk.tokens.entries()) {
      const row = chunk.logits === 'last' ? i - chunk.tokens.length + 1 : i
      if (row >= 0 && chunk.logits !== 'none') {
        this.#favour(logits, row, token, chunk.startPosition + i)
      }
    }
    return logits
  }

  override decode(batch: Parameters<ArithmeticRunner['decode']>[0]): Float32Array {
    this.runs++
    const logits = super.decode(batch)
    for (const [row, token] of batch.tokens.entries()) {
      this.#favour(logits, row, token, batch.positions[row] as number)
    }
    return logits
  }

  #favour(logits: Float32Array, row: number, token: number, position: number): void {
    const next = position % 50 === 49 ? 33 : (token + 1) % 10
    logits[row * this.vocabSize + next] = 20
  }
}

test.each([
  ['greedy', GREEDY],
  ['sampled', { ...GREEDY, doSample: true, temperature: 2, seed: 3, repetitionPenalty: 1.01 }],
])('a lone repeating sequence needs fewer runs and gets the same tokens, %s', (_, sampling) => {
  const results = [0, 15].map((maxGuesses) => {
    const runner = new RepeatingRunner({ ...SMALL_ARITHMETIC, maxPositions: 400 })
    const harness = new EngineHarness({ runner, limits: { maxGuesses } })
    harness.engine.submit(requestOf('s', { sampling, maxNewTokens: 200 }), undefined)
    harness.runUntilIdle()
    return { tokens: harness.tokens('s'), runs: runner.runs, stats: harness.engine.stats() }
  })
  const [without, ahead] = results as [(typeof results)[0], (typeof results)[0]]
  expect(ahead.tokens).toEqual(without.tokens)
  expect(without.runs).toBe(200)
  expect(ahead.runs).toBeLessThan(100)
  expect(ahead.stats.rightGuesses).toBeGreaterThan(80)
  expect(ahead.stats.decodeTokens).toBe(199)
})
