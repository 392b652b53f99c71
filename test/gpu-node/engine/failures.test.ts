/** Whatever fails: every sequence that was submitted ends exactly once, and only those end badly that had to. */

import fc from 'fast-check'
import { expect, test } from 'vitest'
import { arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, EngineHarness, requestOf } from '../../support/engine-harness.ts'
import { FaultyRunner, type RunnerCall } from '../../support/faulty-runner.ts'

const IDS = Array.from({ length: 12 }, (_, i) => `s${i}`)

/** Twelve sequences, every second one with an adapter. */
function submitAll(harness: EngineHarness): void {
  for (const [i, id] of IDS.entries()) {
    const adapter = i % 2 === 0 ? undefined : arithmeticAdapter(1 + (i % 3))
    const digest = adapter === undefined ? {} : { adapterDigest: adapter.digest }
    harness.engine.submit(requestOf(id, { promptTokens: Int32Array.of(i, 2), maxNewTokens: 8, ...digest }), adapter)
  }
}

/** Steps until the engine is idle or broken. */
function run(harness: EngineHarness): 'idle' | 'fatal' {
  for (let step = 0; step < 2000; step++) {
    const { kind } = harness.step()
    if (kind === 'idle' || kind === 'fatal') {
      return kind
    }
    harness.clock++
  }
  throw new Error('neither idle nor broken')
}

function expectRightTokens(harness: EngineHarness, id: string): void {
  const i = IDS.indexOf(id)
  const request = requestOf(id, { promptTokens: Int32Array.of(i, 2), maxNewTokens: 8 })
  expect(harness.tokens(id)).toEqual(
    aloneOnArithmetic(request, i % 2 === 0 ? 0 : 1 + (i % 3), SMALL_ARITHMETIC.maxPositions),
  )
}

/** Rows that decode and prompts apart, and together. */
const runners = [SMALL_ARITHMETIC, { ...SMALL_ARITHMETIC, mixed: true }]

test.each(runners)('runs that fail now and then are repeated, and nobody notices: %o', (options) => {
  const failing = fc.record({
    decode: fc.array(fc.boolean(), { minLength: 5, maxLength: 40 }),
    prefill: fc.array(fc.boolean(), { minLength: 5, maxLength: 40 }),
  })
  fc.assert(
    fc.property(failing, (plan) => {
      const calls = { decode: 0, prefill: 0 }
      const failed = { decode: false, prefill: false }
      // Never twice in a row: that is the next test's matter.
      const runner = new FaultyRunner((call: RunnerCall) => {
        if (call === 'load') {
          return false
        }
        failed[call] = !failed[call] && (plan[call][calls[call]++] ?? false)
        return failed[call]
      }, options)
      const harness = new EngineHarness({ runner })
      submitAll(harness)
      expect(run(harness)).toBe('idle')
      for (const id of IDS) {
        expect(harness.endings(id)).toMatchObject([{ kind: 'finished' }])
        expectRightTokens(harness, id)
      }
    }),
    { numRuns: 60 },
  )
})

test.each(runners)('a prompt that the model cannot run fails alone: %o', (options) => {
  let poisoned = false
  class Poisoned extends FaultyRunner {
    override prefill(chunk: Parameters<FaultyRunner['prefill']>[0]): Float32Array {
      poisoned = chunk.tokens[0] === 5
      return super.prefill(chunk)
    }
  }
  const harness = new EngineHarness({ runner: new Poisoned((call) => call === 'prefill' && poisoned, options) })
  submitAll(harness)
  expect(run(harness)).toBe('idle')
  for (const id of IDS) {
    expect(harness.endings(id)).toMatchObject([
      id === 's5' ? { kind: 'failed', code: 'engine_failed' } : { kind: 'finished' },
    ])
  }
})

test('an adapter that cannot be loaded fails its own sequences alone', () => {
  class Refusing extends FaultyRunner {
    override loadAdapter(adapterSlot: number, adapter: ReturnType<typeof arithmeticAdapter>): void {
      if (adapter.digest === 'adapter-2') {
        throw new Error('no such module')
      }
      super.loadAdapter(adapterSlot, adapter)
    }
  }
  const harness = new EngineHarness({ runner: new Refusing(() => false) })
  submitAll(harness)
  expect(run(harness)).toBe('idle')
  for (const [i, id] of IDS.entries()) {
    const ofAdapter2 = i % 2 === 1 && 1 + (i % 3) === 2
    expect(harness.endings(id)).toMatchObject([ofAdapter2 ? { kind: 'failed' } : { kind: 'finished' }])
    if (!ofAdapter2) {
      expectRightTokens(harness, id)
    }
  }
  expect(harness.engine.stats().residentAdapters.map(({ digest }) => digest)).not.toContain('adapter-2')
})

test.each<RunnerCall>(['decode', 'prefill', 'load'])('when every %s fails, each sequence ends once', (broken) => {
  const harness = new EngineHarness({ runner: new FaultyRunner((call) => call === broken) })
  submitAll(harness)
  run(harness)
  for (const id of IDS) {
    expect(harness.endings(id)).toHaveLength(1)
  }
  harness.engine.submit(requestOf('late'), undefined)
  run(harness)
  expect(harness.endings('late')).toHaveLength(1)
})

test('an engine that broke says so at every step and to every submission', () => {
  const harness = new EngineHarness({ runner: new FaultyRunner((call) => call === 'decode') })
  submitAll(harness)
  expect(run(harness)).toBe('fatal')
  expect(harness.step()).toMatchObject({ kind: 'fatal', error: { message: 'the model failed to run' } })
  harness.engine.submit(requestOf('late'), undefined)
  expect(harness.of('late')).toMatchObject([{ kind: 'failed', code: 'engine_failed' }])
})

test('logits that are not finite fail the sequence that got them, and name the adapter as the likely cause', () => {
  const harness = new EngineHarness()
  const broken = arithmeticAdapter(Number.NaN)
  harness.engine.submit(requestOf('broken', { adapterDigest: broken.digest }), broken)
  harness.engine.submit(requestOf('good'), undefined)
  expect(run(harness)).toBe('idle')
  expect(harness.endings('broken')).toMatchObject([
    { kind: 'failed', code: 'internal', message: 'the model with this adapter gave logits that are not finite' },
  ])
  expect(harness.endings('good')).toMatchObject([{ kind: 'finished' }])
})

test('a drained engine refuses what comes and ends what is here', () => {
  const harness = new EngineHarness()
  submitAll(harness)
  harness.step()
  harness.engine.drain()
  harness.engine.submit(requestOf('late'), undefined)
  expect(harness.of('late')).toMatchObject([{ kind: 'failed', code: 'node_draining' }])
  expect(run(harness)).toBe('idle')
  for (const id of IDS) {
    expect(harness.endings(id)).toMatchObject([{ kind: 'finished' }])
  }
})
