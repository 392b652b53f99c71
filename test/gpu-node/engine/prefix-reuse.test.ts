/** What was run before is not run again: for the same adapter, the same salt and the same beginning, and for nobody else. */

import { expect, test } from 'vitest'
import type { SequenceRequest } from '../../../gpu-node/engine/engine-types.ts'
import { ArithmeticRunner, arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, EngineHarness, requestOf } from '../../support/engine-harness.ts'

const MAX_POSITIONS = 1000
const SHARED = Int32Array.from({ length: 500 }, (_, i) => (i * 13) % 40)

function harnessOf(prefixCacheBytes = 2 ** 20): EngineHarness {
  const runner = new ArithmeticRunner({ ...SMALL_ARITHMETIC, maxPositions: MAX_POSITIONS })
  return new EngineHarness({ runner, limits: { prefixCacheBytes } })
}

function submit(
  harness: EngineHarness,
  id: string,
  own: number[],
  changes: Partial<SequenceRequest> = {},
  adapterValue = 0,
) {
  const adapter = adapterValue === 0 ? undefined : arithmeticAdapter(adapterValue)
  const request = requestOf(id, {
    promptTokens: Int32Array.from([...SHARED, ...own]),
    ...changes,
    ...(adapter === undefined ? {} : { adapterDigest: adapter.digest }),
  })
  harness.engine.submit(request, adapter)
  return () => {
    expect(harness.tokens(id)).toEqual(aloneOnArithmetic(request, adapterValue, MAX_POSITIONS))
    const [started] = harness.of(id)
    return started?.kind === 'started' ? started.cachedTokens : undefined
  }
}

test('a second request with the same 500 tokens in front runs only its own', () => {
  const harness = harnessOf()
  const first = submit(harness, 'first', [1, 2, 3])
  harness.runUntilIdle()
  expect(first()).toBe(0)
  const before = harness.engine.stats().prefillTokens
  const second = submit(harness, 'second', [4, 5, 6, 7])
  harness.runUntilIdle()
  expect(second()).toBe(496)
  expect(harness.engine.stats().prefillTokens - before).toBe(8)
  expect(harness.engine.stats().prefixHitTokens).toBe(496)
})

test.each<[string, Partial<SequenceRequest>, number]>([
  ['another salt', { cacheSalt: 'other' }, 0],
  ['another adapter', {}, 2],
  ['no adapter', {}, 0],
  ['log-probabilities of the prompt', { promptLogprobs: true }, 1],
])('nothing is reused with %s', (_, changes, adapterValue) => {
  const harness = harnessOf()
  submit(harness, 'first', [1], {}, 1)
  harness.runUntilIdle()
  const other = submit(harness, 'other', [1], changes, adapterValue)
  harness.runUntilIdle()
  expect(other()).toBe(0)
})

test('an answer is part of the next turn’s prefix', () => {
  const harness = harnessOf()
  submit(harness, 'turn-1', [1, 2], { maxNewTokens: 40 })
  harness.runUntilIdle()
  const next = submit(harness, 'turn-2', [1, 2, ...harness.tokenIds('turn-1'), 9, 9])
  harness.runUntilIdle()
  expect(next()).toBe(Math.floor((500 + 2 + 39) / 16) * 16)
})

test('several choices of one prompt that come together run it once', () => {
  const harness = harnessOf()
  const checks = [1, 2, 3].map((seed) =>
    submit(harness, `choice-${seed}`, [8], {
      maxNewTokens: 10,
      sampling: { temperature: 1, doSample: true, seed, alternatives: 0 },
    }),
  )
  harness.runUntilIdle()
  expect(checks.map((check) => check())).toEqual([0, 496, 496])
  expect(harness.engine.stats().prefillTokens).toBe(501 + 5 + 5)
})

test('a prompt that shares little does not wait for another', () => {
  const harness = harnessOf()
  submit(harness, 'long', [])
  harness.step()
  submit(harness, 'other', [], { promptTokens: Int32Array.from([...SHARED.slice(0, 16), ...new Array(100).fill(5)]) })
  harness.step()
  expect(harness.of('other')[0]).toMatchObject({ kind: 'started', cachedTokens: 0 })
})

test('what is shared is kept once, and the least recently used leaves when the budget is used up', () => {
  // The arithmetic model keeps four bytes a token: room for the shared 496 and eight blocks of 16.
  const harness = harnessOf((496 + 8 * 16) * 4)
  const own = (i: number) => new Array(20).fill(i)
  for (let i = 0; i < 20; i++) {
    submit(harness, `s${i}`, own(i))
    harness.runUntilIdle()
    expect(harness.engine.stats().prefixBytes).toBeLessThanOrEqual((496 + 8 * 16) * 4)
  }
  const recent = submit(harness, 'recent', [...own(19), 1])
  const old = submit(harness, 'old', [...own(1), 1])
  harness.runUntilIdle()
  expect(recent()).toBe(512)
  expect(old()).toBe(496)
})

test('without a budget nothing is kept', () => {
  const harness = harnessOf(0)
  submit(harness, 'first', [1])
  harness.runUntilIdle()
  const second = submit(harness, 'second', [1])
  harness.runUntilIdle()
  expect(second()).toBe(0)
  expect(harness.engine.stats().prefixBytes).toBe(0)
})

test('an adapter’s prefixes leave with it', () => {
  const harness = harnessOf()
  submit(harness, 'with', [1], {}, 1)
  submit(harness, 'without', [1])
  harness.runUntilIdle()
  const both = harness.engine.stats().prefixBytes
  let done = false
  harness.engine.unloadAdapter('adapter-1', () => {
    done = true
  })
  expect(done).toBe(true)
  expect(harness.engine.stats()).toMatchObject({ prefixBytes: both / 2, residentAdapters: [] })
  const again = submit(harness, 'again', [1], {}, 1)
  harness.runUntilIdle()
  expect(again()).toBe(0)
})
