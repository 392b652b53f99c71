/** All features, faults and ends of sequences mixed at random: each ends once, what finishes has the tokens it gets alone. */

import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { SequenceRequest } from '../../../gpu-node/engine/engine-types.ts'
import { ArithmeticRunner, arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { CountingMasks } from '../../support/counting-masks.ts'
import { EngineHarness, GREEDY, requestOf } from '../../support/engine-harness.ts'

const GRAMMAR_LENGTH = 7

/** Throws where `faults` says so; the next run is asked for the one after. */
class FaultyRunner extends ArithmeticRunner {
  #faults: boolean[] = []

  plan(faults: boolean[]): void {
    this.#faults = faults
  }

  #maybeFail(): void {
    if (this.#faults.shift() === true) {
      throw new Error('a fault')
    }
  }

  override prefill(...[chunk]: Parameters<ArithmeticRunner['prefill']>) {
    this.#maybeFail()
    return super.prefill(chunk)
  }

  override decode(...[batch]: Parameters<ArithmeticRunner['decode']>) {
    this.#maybeFail()
    return super.decode(batch)
  }

  override hiddenStates(...[chunk]: Parameters<ArithmeticRunner['hiddenStates']>) {
    this.#maybeFail()
    return super.hiddenStates(chunk)
  }

  override loadAdapter(...[slot, adapter]: Parameters<ArithmeticRunner['loadAdapter']>) {
    this.#maybeFail()
    super.loadAdapter(slot, adapter)
  }
}

interface Arrival {
  kind: 'generate' | 'embed' | 'grammar'
  adapterValue: number
  tenant: number
  prompt: number[]
  delivered: number
  maxNewTokens: number
  sampled: boolean
  scored: boolean
  deadline: number | undefined
}

type Act =
  | { kind: 'arrive'; arrival: Arrival }
  | { kind: 'step'; times: number }
  | { kind: 'abort' | 'slow' | 'hurry'; which: number }
  | { kind: 'faults'; faults: boolean[] }
  | { kind: 'preload' | 'pin' | 'unpin' | 'unload'; adapterValue: number }

const arrival: fc.Arbitrary<Arrival> = fc.record({
  kind: fc.constantFrom('generate', 'generate', 'embed', 'grammar'),
  adapterValue: fc.integer({ min: 0, max: 4 }),
  tenant: fc.nat(3),
  // Few tokens and many equal beginnings, so that prefixes are shared and guesses come true.
  prompt: fc.array(fc.nat(2), { minLength: 1, maxLength: 50 }),
  delivered: fc.constantFrom(0, 0, 0, 2),
  maxNewTokens: fc.integer({ min: 1, max: 40 }),
  sampled: fc.boolean(),
  scored: fc.constantFrom(false, false, true),
  deadline: fc.option(fc.integer({ min: 5, max: 400 }), { nil: undefined, freq: 4 }),
})

const act: fc.Arbitrary<Act> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('arrive' as const), arrival }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('step' as const), times: fc.integer({ min: 1, max: 12 }) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constantFrom('abort' as const, 'slow' as const, 'hurry' as const),
      which: fc.nat(40),
    }),
  },
  {
    weight: 1,
    // At most three in a row: six end the engine, as another test asks.
    arbitrary: fc.record({
      kind: fc.constant('faults' as const),
      faults: fc.array(fc.boolean(), { maxLength: 3 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom('preload' as const, 'pin' as const, 'unpin' as const, 'unload' as const),
      adapterValue: fc.integer({ min: 1, max: 4 }),
    }),
  },
)

function toRequest(id: string, { adapterValue, ...given }: Arrival): SequenceRequest {
  const sampling = { ...GREEDY, doSample: given.sampled, seed: given.prompt.length, alternatives: given.scored ? 2 : 0 }
  return requestOf(id, {
    tenantId: `tenant-${given.tenant}`,
    cacheSalt: `salt-${given.tenant % 2}`,
    promptTokens: Int32Array.from(given.prompt),
    // Of the right parity for the grammar.
    deliveredTokens: Int32Array.from({ length: given.delivered }, (_, i) => i % 2),
    maxNewTokens: given.maxNewTokens,
    promptLogprobs: given.scored && given.kind === 'generate',
    sampling,
    ...(adapterValue === 0 ? {} : { adapterDigest: `adapter-${adapterValue}` }),
    ...(given.kind === 'grammar' ? { grammarId: 'g' } : {}),
    ...(given.deadline === undefined ? {} : { deadline: given.deadline }),
  })
}

function submit(harness: EngineHarness, id: string, given: Arrival): void {
  const adapter = given.adapterValue === 0 ? undefined : arithmeticAdapter(given.adapterValue)
  const { promptTokens, tenantId, deadline, ...request } = toRequest(id, given)
  const until = deadline === undefined ? {} : { deadline: harness.clock + deadline }
  if (given.kind === 'embed') {
    const task = { sequenceId: id, tenantId, tokens: promptTokens, pooling: 'mean' as const, ...until }
    harness.engine.submitEmbedding(task, adapter)
  } else {
    harness.engine.submit({ ...request, promptTokens, tenantId, ...until }, adapter)
  }
}

function alone(given: Arrival): unknown[] {
  const masks = new CountingMasks(SMALL_ARITHMETIC.vocabSize, GRAMMAR_LENGTH)
  const harness = new EngineHarness({ masks, limits: { maxGuesses: 0, prefixCacheBytes: 0 } })
  submit(harness, 's', { ...given, deadline: undefined })
  harness.runUntilIdle()
  return outputsOf(harness, 's')
}

/** All that a caller sees but times. */
function outputsOf(harness: EngineHarness, id: string): unknown[] {
  return harness.of(id).flatMap((output): unknown[] => {
    switch (output.kind) {
      case 'started':
        return []
      case 'token':
        return [output.token]
      default:
        return [{ ...output, sequenceId: '' }]
    }
  })
}

function perform(
  harness: EngineHarness,
  masks: CountingMasks,
  one: Act,
  ids: string[],
  unloads: { open: number },
): void {
  const { engine } = harness
  switch (one.kind) {
    case 'step':
      for (let i = 0; i < one.times; i++) {
        harness.step()
        harness.clock++
      }
      break
    case 'abort':
      engine.abort(ids[one.which % Math.max(1, ids.length)] ?? 'none')
      break
    case 'slow':
      masks.slow.add(ids[one.which % Math.max(1, ids.length)] ?? 'none')
      break
    case 'hurry':
      masks.hurry(ids[one.which % Math.max(1, ids.length)] ?? 'none')
      break
    case 'preload':
    case 'pin':
      try {
        const adapter = arithmeticAdapter(one.adapterValue)
        one.kind === 'pin' ? engine.pinAdapter(adapter) : engine.preloadAdapter(adapter)
      } catch {
        // No slot, or a fault: the caller's alone.
      }
      break
    case 'unpin':
      engine.unpinAdapter(`adapter-${one.adapterValue}`)
      break
    case 'unload':
      unloads.open++
      engine.unpinAdapter(`adapter-${one.adapterValue}`)
      engine.unloadAdapter(`adapter-${one.adapterValue}`, () => unloads.open--)
      break
    default:
  }
}

test('each sequence ends once, and what finishes has what it gets alone', () => {
  let finished = 0
  fc.assert(
    fc.property(
      fc.array(act, { minLength: 5, maxLength: 60 }),
      fc.record({
        mixed: fc.boolean(),
        prefillChunk: fc.constantFrom(1, 5, 32),
        maxGuesses: fc.constantFrom(0, 7),
        preemptAfterMs: fc.constantFrom(2, 250),
        prefixBlock: fc.constantFrom(4, 16),
        prefixCacheBytes: fc.constantFrom(0, 2_000, 2 ** 20),
      }),
      (acts, { mixed, ...limits }) => {
        const runner = new FaultyRunner({ ...SMALL_ARITHMETIC, mixed })
        const masks = new CountingMasks(SMALL_ARITHMETIC.vocabSize, GRAMMAR_LENGTH)
        const harness = new EngineHarness({ runner, masks, limits: { ...limits, maxWaiting: 12, maxPassedOverMs: 5 } })
        const arrivals = new Map<string, Arrival>()
        const unloads = { open: 0 }
        for (const one of acts) {
          if (one.kind === 'arrive') {
            const id = `s${arrivals.size}`
            arrivals.set(id, one.arrival)
            submit(harness, id, one.arrival)
          } else if (one.kind === 'faults') {
            runner.plan([...one.faults])
          } else {
            perform(harness, masks, one, [...arrivals.keys()], unloads)
          }
        }
        runner.plan([])
        for (const id of arrivals.keys()) {
          masks.hurry(id)
        }
        harness.runUntilIdle()
        expect(unloads.open).toBe(0)
        expect([...masks.began].sort()).toEqual([...masks.ended].sort())
        for (const [id, given] of arrivals) {
          const endings = harness.endings(id)
          expect([id, endings.length]).toEqual([id, 1])
          if (endings[0]?.kind === 'finished') {
            finished++
            expect(outputsOf(harness, id)).toEqual(alone(given))
          }
        }
      },
    ),
    { numRuns: 300 },
  )
  expect(finished).toBeGreaterThan(100)
})
