/** The engine's central property: whatever else runs beside it, each sequence gets the tokens it gets alone. */

import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { SamplingParams, SequenceRequest } from '../../../gpu-node/engine/engine-types.ts'
import { ArithmeticRunner, arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, EngineHarness, requestOf } from '../../support/engine-harness.ts'

const token = fc.integer({ min: 0, max: SMALL_ARITHMETIC.vocabSize - 1 })
const tokensUpTo = (maxLength: number, minLength = 0) =>
  fc.array(token, { minLength, maxLength, size: 'max' }).map((list) => Int32Array.from(list))

const sampling: fc.Arbitrary<SamplingParams> = fc.record(
  {
    temperature: fc.constantFrom(0.5, 1, 1.7),
    doSample: fc.boolean(),
    seed: fc.maxSafeNat(),
    alternatives: fc.constantFrom(0, 3),
    topK: fc.constantFrom(1, 5, 30),
    topP: fc.constantFrom(0.3, 0.9),
    minP: fc.constantFrom(0.05, 0.5),
    typicalP: fc.constantFrom(0.2, 0.8),
    repetitionPenalty: fc.constantFrom(0.8, 1.3),
    frequencyPenalty: fc.constantFrom(-0.5, 0.7),
    presencePenalty: fc.constantFrom(-0.5, 0.7),
    watermark: fc.boolean(),
  },
  { requiredKeys: ['temperature', 'doSample', 'seed', 'alternatives'] },
)

/** A few beginnings, so that prompts share prefixes. */
const promptTokens = fc
  .tuple(fc.constantFrom(0, 12, 20, 40), fc.constantFrom(5, 6), tokensUpTo(20, 1))
  .map(([shared, filler, own]) => Int32Array.from([...new Array(shared).fill(filler), ...own]))

interface Arrival {
  request: Omit<SequenceRequest, 'sequenceId'>
  adapterValue: number
  /** Steps before it arrives, and after which it is aborted. */
  atStep: number
  abortAfter: number | undefined
}

const arrival: fc.Arbitrary<Arrival> = fc.record({
  request: fc.record({
    tenantId: fc.constantFrom('a', 'a', 'a', 'b'),
    cacheSalt: fc.constantFrom('x', 'y'),
    promptTokens,
    deliveredTokens: fc.oneof(
      { weight: 3, arbitrary: fc.constant(new Int32Array(0)) },
      { weight: 1, arbitrary: tokensUpTo(6) },
    ),
    sampling,
    maxNewTokens: fc.integer({ min: 1, max: 32 }),
    eosTokens: fc.constantFrom([], [3], [3, 17]),
    ignoreEos: fc.boolean(),
    promptLogprobs: fc.boolean(),
  }),
  adapterValue: fc.constantFrom(0, 0, 0, 0, 1, 2, 3),
  atStep: fc.nat({ max: 20 }),
  abortAfter: fc.option(fc.nat({ max: 30 }), { freq: 5, nil: undefined }),
})

const limits = fc.record({
  prefillChunk: fc.constantFrom(2, 7, 128, 128),
  smallestChunk: fc.constantFrom(1, 5, 128),
  maxPrefilling: fc.integer({ min: 1, max: 4 }),
  prefixCacheBytes: fc.constantFrom(0, 200, 4096),
  prefixBlock: fc.constantFrom(4, 16),
  maxGuesses: fc.constantFrom(0, 2, 15),
  preemptAfterMs: fc.constantFrom(0, 3, 1_000_000),
  maxPassedOverMs: fc.constantFrom(5, 1_000_000),
})

const cases = fc.array(arrival, { minLength: 1, maxLength: 16, size: 'max' })

test('each sequence gets the tokens that it gets alone, for any arrivals, adapters, lengths, aborts and chunk sizes', () => {
  let preemptions = 0
  let prefixHits = 0
  let rightGuesses = 0
  fc.assert(
    fc.property(cases, limits, fc.boolean(), (arrivals, chosenLimits, mixed) => {
      const runner = new ArithmeticRunner({ ...SMALL_ARITHMETIC, mixed })
      const harness = new EngineHarness({ runner, limits: chosenLimits })
      const pending = arrivals.map((one, i) => ({ ...one, id: `s${i}` }))
      const requests = new Map<string, SequenceRequest>()
      for (let step = 0; pending.some(({ id }) => harness.endings(id).length === 0); step++) {
        for (const { id, request, adapterValue, atStep, abortAfter } of pending) {
          if (atStep === step) {
            const adapter = adapterValue === 0 ? undefined : arithmeticAdapter(adapterValue)
            requests.set(
              id,
              requestOf(id, adapter === undefined ? request : { ...request, adapterDigest: adapter.digest }),
            )
            harness.engine.submit(requests.get(id) as SequenceRequest, adapter)
          }
          if (abortAfter !== undefined && step === atStep + abortAfter) {
            harness.engine.abort(id)
          }
        }
        harness.step()
        harness.clock++
        expect(step).toBeLessThan(5000)
      }
      for (const { id, adapterValue } of pending) {
        const request = requests.get(id) as SequenceRequest
        const [ending] = harness.endings(id)
        const expected = alreadyComplete(request)
          ? []
          : aloneOnArithmetic(request, adapterValue, SMALL_ARITHMETIC.maxPositions)
        const got = harness.tokens(id)
        expect(harness.endings(id)).toHaveLength(1)
        if (ending?.kind === 'finished') {
          expect(got).toEqual(expected)
        } else {
          expect(ending?.kind).toBe('aborted')
          expect(got).toEqual(expected.slice(0, got.length))
        }
      }
      expect(harness.step().kind).toBe('idle')
      expect(harness.engine.stats()).toMatchObject({
        freeRows: SMALL_ARITHMETIC.maxRows,
        waiting: 0,
        invariantViolations: [],
      })
      preemptions += harness.engine.stats().preemptions
      prefixHits += harness.engine.stats().prefixHitTokens
      rightGuesses += harness.engine.stats().rightGuesses
    }),
    { numRuns: 250 },
  )
  // The cases do reach the paths that move KV about.
  expect(preemptions).toBeGreaterThan(0)
  expect(prefixHits).toBeGreaterThan(50)
  expect(rightGuesses).toBeGreaterThan(0)
})

/** Its delivered tokens end it already; with log-probabilities of the prompt to give, it runs all the same. */
function alreadyComplete(request: SequenceRequest): boolean {
  const last = request.deliveredTokens.at(-1)
  return last !== undefined && !request.ignoreEos && request.eosTokens.includes(last)
}
