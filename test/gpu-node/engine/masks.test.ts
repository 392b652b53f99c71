/** Structured output in the step loop: masks hold, and one that is late holds up its own sequence alone. */

import { expect, test } from 'vitest'
import { SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { CountingMasks } from '../../support/counting-masks.ts'
import { aloneOnArithmetic, EngineHarness, requestOf } from '../../support/engine-harness.ts'

function start(length = 6) {
  const masks = new CountingMasks(SMALL_ARITHMETIC.vocabSize, length)
  return { masks, harness: new EngineHarness({ masks }) }
}

function submitMasked(harness: EngineHarness, id: string, changes = {}): void {
  harness.engine.submit(requestOf(id, { grammarId: 'g', maxNewTokens: 20, ...changes }), undefined)
}

test('each token obeys its mask, and the sequence ends with the grammar', () => {
  const { masks, harness } = start()
  submitMasked(harness, 'masked')
  harness.runUntilIdle()
  expect(harness.tokenIds('masked').map((token) => token % 2)).toEqual([0, 1, 0, 1, 0, 1])
  expect(harness.endings('masked')).toMatchObject([{ kind: 'finished', reason: 'grammar_end' }])
  expect([masks.began, masks.ended]).toEqual([['masked'], ['masked']])
})

test('an end-of-sequence token that the grammar allows ends it, whatever ignoreEos says', () => {
  const { harness } = start()
  submitMasked(harness, 'probe')
  harness.runUntilIdle()
  const second = harness.tokenIds('probe')[1] as number
  submitMasked(harness, 'eos', { eosTokens: [second], ignoreEos: true })
  harness.runUntilIdle()
  expect(harness.tokenIds('eos')).toHaveLength(2)
  expect(harness.endings('eos')).toMatchObject([{ reason: 'eos' }])
})

test('a continued sequence goes on in the middle of its grammar', () => {
  const { harness } = start()
  submitMasked(harness, 'whole')
  harness.runUntilIdle()
  const whole = harness.tokenIds('whole')
  submitMasked(harness, 'rest', { deliveredTokens: Int32Array.from(whole.slice(0, 3)) })
  harness.runUntilIdle()
  expect(harness.tokenIds('rest')).toEqual(whole.slice(3))
})

test('a late mask holds up nobody else, and costs its sequence no token', () => {
  const { masks, harness } = start()
  submitMasked(harness, 'expected')
  harness.runUntilIdle()
  masks.slow.add('late')
  submitMasked(harness, 'late')
  for (const id of ['a', 'b', 'c', 'd', 'e']) {
    harness.engine.submit(requestOf(id, { maxNewTokens: 10 }), undefined)
  }
  const alone = aloneOnArithmetic(requestOf('', { maxNewTokens: 10 }), 0, 96)
  while (harness.step().kind !== 'deferred') {
    harness.clock++
    expect(harness.clock).toBeLessThan(500)
  }
  for (const id of ['a', 'b', 'c', 'd', 'e']) {
    expect(harness.tokens(id)).toEqual(alone)
  }
  expect(harness.tokens('late')).toEqual([])
  masks.hurry('late')
  harness.runUntilIdle()
  expect(harness.tokens('late')).toEqual(harness.tokens('expected'))
})

test('masks that come at odd times change no token', () => {
  const { masks, harness } = start(16)
  submitMasked(harness, 'expected')
  harness.runUntilIdle()
  const ids = ['x', 'y', 'z']
  for (const id of ids) {
    submitMasked(harness, id)
  }
  harness.engine.submit(requestOf('plain', { maxNewTokens: 30 }), undefined)
  for (let step = 0; ids.some((id) => harness.endings(id).length === 0); step++) {
    for (const [i, id] of ids.entries()) {
      const isLate = (step * 7 + i * 3) % 5 < i + 1
      if (isLate) {
        masks.slow.add(id)
      } else {
        masks.hurry(id)
      }
    }
    harness.step()
    expect(step).toBeLessThan(500)
  }
  for (const id of ids) {
    expect(harness.tokens(id)).toEqual(harness.tokens('expected'))
  }
  harness.runUntilIdle()
  expect(harness.tokens('plain')).toEqual(aloneOnArithmetic(requestOf('', { maxNewTokens: 30 }), 0, 96))
})

test('a mask that will never come ends with the deadline or an abort, and its matcher ends too', () => {
  const { masks, harness } = start()
  for (const id of ['expires', 'aborted', 'waits']) {
    masks.slow.add(id)
  }
  submitMasked(harness, 'expires', { deadline: 30 })
  submitMasked(harness, 'aborted')
  for (let step = 0; step < 40; step++) {
    harness.step()
    harness.clock++
  }
  expect(harness.endings('expires')).toMatchObject([{ code: 'deadline_exceeded' }])
  harness.engine.abort('aborted')
  expect(masks.ended.sort()).toEqual(['aborted', 'expires'])
  expect(harness.step().kind).toBe('idle')
})
