import { expect, test } from 'vitest'
import { type ChunkLimits, planStep, type StepSituation } from '../../../gpu-node/engine/step-plan.ts'

const LIMITS: ChunkLimits = { prefillChunk: 100, smallestChunk: 8, stallRatio: 0.5 }
const COSTS = { decodeMs: 40, prefillMsPerToken: 1 }

const prefill = (remaining: number, startedAt = 0, maxTokens = Number.POSITIVE_INFINITY) => ({
  remaining,
  startedAt,
  maxTokens,
})

function plan(situation: Partial<StepSituation>, costs: Parameters<typeof planStep>[2] = COSTS) {
  return planStep({ decoding: 0, prefills: [], admissible: 0, loadedAdapter: false, ...situation }, LIMITS, costs)
}

test('without running streams a chunk is the largest', () => {
  expect(plan({ prefills: [prefill(500)] })).toEqual({ decode: false, prefill: { index: 0, tokens: 100 } })
})

test('beside running streams a chunk takes its part of the decode’s time', () => {
  expect(plan({ decoding: 3, prefills: [prefill(500)] })).toEqual({ decode: true, prefill: { index: 0, tokens: 20 } })
  expect(plan({ decoding: 3, prefills: [prefill(5)] }).prefill?.tokens).toBe(5)
})

test('the more sequences wait for their first token, the more time they get', () => {
  expect(plan({ decoding: 2, prefills: [prefill(500), prefill(500)], admissible: 4 }).prefill?.tokens).toBe(60)
  expect(plan({ decoding: 8, prefills: [prefill(500), prefill(500)], admissible: 4 }).prefill?.tokens).toBe(20)
})

test('however slow, a prompt goes on; before anything is measured, carefully', () => {
  expect(plan({ decoding: 1, prefills: [prefill(500)] }, { decodeMs: 4, prefillMsPerToken: 10 }).prefill?.tokens).toBe(
    8,
  )
  const unknown = { decodeMs: undefined, prefillMsPerToken: undefined }
  expect(plan({ decoding: 1, prefills: [prefill(500)] }, unknown).prefill?.tokens).toBe(8)
})

test('an adapter load uses up the pause that a chunk would have taken', () => {
  expect(plan({ decoding: 1, prefills: [prefill(9)], loadedAdapter: true })).toEqual({
    decode: true,
    prefill: undefined,
  })
  expect(plan({ prefills: [prefill(9)], loadedAdapter: true }).prefill).toBeDefined()
})

test('the prompt that would be done first alone goes first', () => {
  expect(plan({ prefills: [prefill(300), prefill(20)] }).prefill?.index).toBe(1)
  expect(plan({ prefills: [prefill(300), prefill(20, 290)] }).prefill?.index).toBe(0)
})

test('log-probabilities of prompts come in small chunks', () => {
  expect(plan({ prefills: [prefill(300, 0, 32)] }).prefill?.tokens).toBe(32)
})

test('with nothing to do the plan is empty', () => {
  expect(plan({})).toEqual({ decode: false, prefill: undefined })
})
