/** Whose turn it is: tenants, adapters, prompts beside streams, and the bounds of the queue. */

import { expect, test } from 'vitest'
import type { PrefillChunk, SequenceRequest } from '../../../gpu-node/engine/engine-types.ts'
import { ArithmeticRunner, arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, EngineHarness, type HarnessOptions, requestOf } from '../../support/engine-harness.ts'

function submit(harness: EngineHarness, id: string, changes: Partial<SequenceRequest> = {}, adapterValue = 0): void {
  const adapter = adapterValue === 0 ? undefined : arithmeticAdapter(adapterValue)
  const digest = adapter === undefined ? {} : { adapterDigest: adapter.digest }
  harness.engine.submit(requestOf(id, { ...changes, ...digest }), adapter)
}

function steps(harness: EngineHarness, count: number): void {
  for (let step = 0; step < count; step++) {
    harness.step()
    harness.clock++
  }
}

/** Ids in the order in which they ended. */
const endOrder = (harness: EngineHarness) =>
  harness.outputs.filter(({ kind }) => kind === 'finished').map(({ sequenceId }) => sequenceId)

/** Tokens of all sequences whose id starts so. */
const tokensOf = (harness: EngineHarness, prefix: string) =>
  harness.outputs.filter(({ kind, sequenceId }) => kind === 'token' && sequenceId.startsWith(prefix)).length

const wide = (changes: Partial<typeof SMALL_ARITHMETIC>, options: HarnessOptions = {}) =>
  new EngineHarness({ ...options, runner: new ArithmeticRunner({ ...SMALL_ARITHMETIC, ...changes }) })

test('a tenant with a hundred queued requests does not delay a tenant with one', () => {
  const alone = new EngineHarness()
  submit(alone, 'one', { tenantId: 'small', maxNewTokens: 10 })
  const stepsAlone = alone.runUntilIdle()

  const harness = new EngineHarness({ limits: { preemptAfterMs: 5 } })
  for (let i = 0; i < 100; i++) {
    submit(harness, `many-${i}`, { tenantId: 'big', maxNewTokens: 40, promptTokens: Int32Array.of(1, 2, i % 40) })
  }
  steps(harness, 30)
  submit(harness, 'one', { tenantId: 'small', maxNewTokens: 10 })
  const before = harness.engine.stats().steps
  while (harness.endings('one').length === 0) {
    steps(harness, 1)
  }
  // A row is given up within a few milliseconds; then it runs as fast as alone, but for the chunks that others prefill.
  expect(harness.engine.stats().steps - before).toBeLessThanOrEqual(stepsAlone + 10)
  harness.runUntilIdle()
  expect(endOrder(harness)).toHaveLength(101)
  expect(harness.tokenIds('many-0')).toEqual(
    aloneOnArithmetic(requestOf('', { maxNewTokens: 40, promptTokens: Int32Array.of(1, 2, 0) }), 0, 96).map(
      (t) => t.tokenId,
    ),
  )
})

test('two busy tenants get the same share of tokens, however many requests each has', () => {
  const harness = new EngineHarness()
  for (let i = 0; i < 60; i++) {
    submit(harness, `a-${i}`, { tenantId: 'a', maxNewTokens: 10 })
  }
  for (let i = 0; i < 20; i++) {
    submit(harness, `b-${i}`, { tenantId: 'b', maxNewTokens: 10 })
  }
  steps(harness, 80)
  const [a, b] = [tokensOf(harness, 'a-'), tokensOf(harness, 'b-')]
  expect(a + b).toBeGreaterThan(150)
  expect(Math.abs(a - b) / (a + b)).toBeLessThan(0.15)
})

test('a tenant that paused has saved nothing up', () => {
  const harness = new EngineHarness()
  submit(harness, 'early', { tenantId: 'b', maxNewTokens: 1 })
  for (let i = 0; i < 80; i++) {
    submit(harness, `a-${i}`, { tenantId: 'a', maxNewTokens: 10 })
  }
  steps(harness, 100)
  const before = tokensOf(harness, 'a-')
  for (let i = 0; i < 40; i++) {
    submit(harness, `b-${i}`, { tenantId: 'b', maxNewTokens: 10 })
  }
  steps(harness, 100)
  const share = (tokensOf(harness, 'a-') - before) / (tokensOf(harness, 'a-') - before + tokensOf(harness, 'b-'))
  expect(share).toBeGreaterThan(0.4)
  expect(share).toBeLessThan(0.6)
})

test('a sequence whose adapter finds no slot waits without blocking others, and gets one in time', () => {
  const harness = wide({ maxRows: 3, adapterSlots: 1 }, { limits: { maxPassedOverMs: 50 } })
  let next = 0
  const keepBusy = () => {
    while (harness.engine.stats().waiting < 3) {
      submit(harness, `of-1-${next++}`, { maxNewTokens: 20 }, 1)
    }
  }
  keepBusy()
  steps(harness, 3)
  submit(harness, 'of-2', { maxNewTokens: 5 }, 2)
  submit(harness, 'of-none', { maxNewTokens: 5 })
  const waited = { none: 0, two: 0 }
  while (harness.endings('of-2').length === 0) {
    keepBusy()
    steps(harness, 1)
    waited.none += harness.endings('of-none').length === 0 ? 1 : 0
    waited.two++
    expect(waited.two).toBeLessThan(400)
  }
  expect(waited.none).toBeLessThan(50)
  expect(waited.two).toBeGreaterThan(50)
  expect(waited.two).toBeLessThan(130)
  const alone = aloneOnArithmetic(requestOf('', { maxNewTokens: 5 }), 2, 96)
  expect(harness.tokenIds('of-2')).toEqual(alone.map((token) => token.tokenId))
})

test('many adapters through few slots all get their turn', () => {
  const harness = new EngineHarness({ limits: { maxPassedOverMs: 20 } })
  for (let i = 0; i < 40; i++) {
    submit(harness, `s-${i}`, { maxNewTokens: 6 }, 1 + (i % 10))
  }
  harness.runUntilIdle()
  expect(endOrder(harness)).toHaveLength(40)
})

test('streams go on while a long prompt runs, chunk by chunk', () => {
  const harness = new EngineHarness({ limits: { prefillChunk: 64, smallestChunk: 4 } })
  const long = Int32Array.from({ length: 80 }, (_, i) => i % 40)
  submit(harness, 'stream', { maxNewTokens: 60 })
  steps(harness, 5)
  submit(harness, 'long', { promptTokens: long, maxNewTokens: 4 })
  const counts: number[] = []
  while (harness.of('long').every(({ kind }) => kind !== 'token')) {
    const before = harness.tokenIds('stream').length
    steps(harness, 1)
    counts.push(harness.tokenIds('stream').length - before)
  }
  expect(counts.length).toBeGreaterThan(1)
  expect(counts.every((count) => count === 1)).toBe(true)
})

/** Each token of a prompt takes a millisecond. */
class TimedRunner extends ArithmeticRunner {
  onPrefill: (tokens: number) => void = () => undefined

  override prefill(chunk: PrefillChunk): Float32Array {
    this.onPrefill(chunk.tokens.length)
    return super.prefill(chunk)
  }
}

test('a short prompt overtakes a long one, but not for ever', () => {
  const runner = new TimedRunner({ ...SMALL_ARITHMETIC, maxRows: 8, maxPositions: 2000 })
  const harness = new EngineHarness({ runner, limits: { prefillChunk: 20 } })
  runner.onPrefill = (tokens) => {
    harness.clock += tokens
  }
  submit(harness, 'long', { promptTokens: new Int32Array(400).fill(3), maxNewTokens: 1 })
  harness.step()
  submit(harness, 'short', { promptTokens: new Int32Array(20).fill(4), maxNewTokens: 1 })
  harness.step()
  expect(endOrder(harness)).toEqual(['short'])
  // A new one of 20 ms at every step: each is overtaken by none, and together they delay the long one to twice its time.
  for (let i = 0; harness.endings('long').length === 0; i++) {
    submit(harness, `more-${i}`, { promptTokens: new Int32Array(20).fill(i % 40), maxNewTokens: 1 })
    harness.step()
    expect(harness.clock).toBeLessThan(1000)
  }
  expect(endOrder(harness).length).toBeGreaterThan(10)
})

test('the queue is bounded; a full one is refused with when to come back', () => {
  const harness = new EngineHarness({ limits: { maxWaiting: 6 } })
  for (let i = 0; i < 4; i++) {
    submit(harness, `running-${i}`, { maxNewTokens: 20 })
    steps(harness, 2)
  }
  for (let i = 0; i < 9; i++) {
    submit(harness, `waiting-${i}`, { maxNewTokens: 20 })
  }
  expect(harness.engine.stats()).toMatchObject({ waiting: 6, freeRows: 0 })
  const [refused] = harness.endings('waiting-6')
  expect(refused).toMatchObject({ kind: 'failed', code: 'queue_full' })
  expect(refused?.kind === 'failed' && refused.message).toBe(
    '6 sequences are waiting; at most 6 may, shared among tenants',
  )
  expect(refused?.kind === 'failed' && refused.retryAfterSeconds).toBeGreaterThanOrEqual(1)
  harness.runUntilIdle()
  expect(endOrder(harness)).toHaveLength(10)
})

test('one tenant cannot take the whole of a long queue', () => {
  const harness = new EngineHarness({ limits: { maxWaiting: 90 } })
  for (let i = 0; i < 120; i++) {
    submit(harness, `big-${i}`, { tenantId: 'big' })
  }
  const { waiting } = harness.engine.stats()
  expect(waiting).toBeGreaterThan(70)
  expect(waiting).toBeLessThan(85)
  submit(harness, 'small', { tenantId: 'small' })
  expect(harness.endings('small')).toEqual([])
})

test('deadlines end what waits and what runs', () => {
  const harness = wide({ maxRows: 1 })
  submit(harness, 'runs', { maxNewTokens: 80, deadline: 20 })
  submit(harness, 'waits', { deadline: 10 })
  submit(harness, 'fits', { deadline: 60 })
  steps(harness, 12)
  expect(harness.of('waits')).toMatchObject([{ kind: 'failed', code: 'deadline_exceeded' }])
  expect(harness.endings('runs')).toEqual([])
  harness.runUntilIdle()
  expect(harness.endings('runs')).toMatchObject([{ code: 'deadline_exceeded' }])
  expect(harness.tokenIds('runs').length).toBeGreaterThan(15)
  expect(harness.endings('fits')).toMatchObject([{ kind: 'finished' }])
})

test('an abort frees its row at once', () => {
  const harness = wide({ maxRows: 1 })
  submit(harness, 'first', { maxNewTokens: 80 })
  submit(harness, 'second', { maxNewTokens: 3 })
  steps(harness, 10)
  harness.engine.abort('first')
  harness.engine.abort('first')
  expect(harness.endings('first')).toEqual([{ kind: 'aborted', sequenceId: 'first' }])
  steps(harness, 1)
  expect(harness.of('second')[0]).toMatchObject({ kind: 'started' })
})

test.each<[string, Partial<SequenceRequest>, object]>([
  [
    'a prompt that does not fit',
    { promptTokens: new Int32Array(96) },
    { code: 'prompt_too_long', message: 'the prompt has 96 tokens; at most 95 fit' },
  ],
  ['no prompt', { promptTokens: new Int32Array(0) }, { code: 'field_invalid' }],
  [
    'a token outside the vocabulary',
    { promptTokens: Int32Array.of(1, 40) },
    { code: 'field_invalid', message: 'token id 40 is outside the vocabulary of 40' },
  ],
  ['a delivered token outside the vocabulary', { deliveredTokens: Int32Array.of(-1) }, { code: 'field_invalid' }],
  ['a negative length', { maxNewTokens: -1 }, { code: 'field_invalid' }],
  ['a grammar without masks', { grammarId: 'g' }, { code: 'not_supported' }],
  ['an adapter that was not given', { adapterDigest: 'unknown' }, { code: 'internal' }],
])('%s is refused and harms nobody', (_, changes, expected) => {
  const harness = new EngineHarness()
  submit(harness, 'good')
  harness.engine.submit(requestOf('bad', changes), undefined)
  expect(harness.of('bad')).toMatchObject([{ kind: 'failed', ...expected }])
  harness.runUntilIdle()
  expect(harness.endings('good')).toMatchObject([{ kind: 'finished' }])
})

test('a sequence ends where the positions end', () => {
  const harness = new EngineHarness()
  submit(harness, 'long', { promptTokens: new Int32Array(90), maxNewTokens: 50 })
  harness.runUntilIdle()
  expect(harness.tokenIds('long')).toHaveLength(6)
  expect(harness.endings('long')).toMatchObject([{ reason: 'length' }])
})

test('a continued sequence goes on with the same tokens, and ends at once when it was complete', () => {
  const sampling = { temperature: 0.9, doSample: true, seed: 77, alternatives: 0, frequencyPenalty: 0.4 }
  const whole = new EngineHarness()
  submit(whole, 's', { sampling, maxNewTokens: 20 })
  whole.runUntilIdle()
  const tokens = whole.tokenIds('s')
  const harness = new EngineHarness()
  for (const delivered of [1, 7, 19, 20]) {
    const deliveredTokens = Int32Array.from(tokens.slice(0, delivered))
    submit(harness, `after-${delivered}`, { sampling, maxNewTokens: 20, deliveredTokens })
  }
  const ended = Int32Array.from([...tokens.slice(0, 5)])
  submit(harness, 'ended', { sampling, maxNewTokens: 20, deliveredTokens: ended, eosTokens: [tokens[4] as number] })
  expect(harness.of('ended')).toEqual([{ kind: 'finished', sequenceId: 'ended', reason: 'eos' }])
  harness.runUntilIdle()
  for (const delivered of [1, 7, 19, 20]) {
    expect(harness.tokenIds(`after-${delivered}`)).toEqual(tokens.slice(delivered))
    expect(harness.endings(`after-${delivered}`)).toMatchObject([{ kind: 'finished', reason: 'length' }])
  }
})

test('log-probabilities of the prompt are those of its tokens, with or without tokens to generate', () => {
  const harness = new EngineHarness({ limits: { prefillChunk: 3 } })
  const promptTokens = Int32Array.from({ length: 40 }, (_, i) => (i * 7) % 40)
  submit(harness, 'scored', { promptTokens, promptLogprobs: true, maxNewTokens: 0 })
  submit(harness, 'both', { promptTokens, promptLogprobs: true, maxNewTokens: 2 })
  harness.runUntilIdle()
  expect(harness.of('scored').map(({ kind }) => kind)).toEqual(['started', 'prompt_logprobs', 'finished'])
  expect(harness.of('both').map(({ kind }) => kind)).toEqual([
    'started',
    'prompt_logprobs',
    'token',
    'token',
    'finished',
  ])
  const [first, second] = harness.outputs.flatMap((output) =>
    output.kind === 'prompt_logprobs' ? [output.logprobs] : [],
  )
  expect(first).toEqual(second)
  expect(first?.[0]).toBeNaN()
  for (let position = 1; position < 40; position++) {
    const before = requestOf('', {
      promptTokens: promptTokens.slice(0, position),
      maxNewTokens: 1,
      sampling: { temperature: 1, doSample: false, seed: 0, alternatives: 40 },
    })
    const [token] = aloneOnArithmetic(before, 0, 96)
    const expected = token?.alternatives?.find(({ tokenId }) => tokenId === promptTokens[position])
    expect(first?.[position]).toBeCloseTo(expected?.logprob ?? 0, 5)
  }
})
