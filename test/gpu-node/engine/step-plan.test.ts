import { expect, test } from 'vitest'
import { type ChunkLimits, planStep, type StepSituation } from '../../../gpu-node/engine/step-plan.ts'

const LIMITS: ChunkLimits = { prefillChunk: 100, smallestChunk: 8, stallRatio: 0.5 }
const COSTS = { decodeMs: 40, prefillMsPerToken: 1 }

const prefill = (remaining: number, startedAt = 0, maxTokens = Number.POSITIVE_INFINITY) => ({
  remaining,
  startedAt,
  maxTokens,
  alone: false,
})
const alone = (view: ReturnType<typeof prefill>) => ({ ...view, alone: true })
const tokensOf = (situation: Partial<StepSituation>, costs?: Parameters<typeof planStep>[2]) =>
  plan(situation, costs).chunks.map(({ tokens }) => tokens)

function plan(situation: Partial<StepSituation>, costs: Parameters<typeof planStep>[2] = COSTS) {
  return planStep(
    { decoding: 0, prefills: [], admissible: 0, loadedAdapter: false, decodeAlone: false, ...situation },
    LIMITS,
    costs,
  )
}

test('without running streams a chunk is the largest', () => {
  expect(plan({ prefills: [prefill(500)] })).toEqual({ decode: false, chunks: [{ index: 0, tokens: 100 }] })
})

test('beside running streams a chunk takes its part of the decode’s time', () => {
  expect(plan({ decoding: 3, prefills: [prefill(500)] })).toEqual({ decode: true, chunks: [{ index: 0, tokens: 20 }] })
  expect(tokensOf({ decoding: 3, prefills: [prefill(5)] })).toEqual([5])
})

test('the more sequences wait for their first token, the more time they get', () => {
  expect(tokensOf({ decoding: 2, prefills: [prefill(500), prefill(500)], admissible: 4 })).toEqual([60])
  expect(tokensOf({ decoding: 8, prefills: [prefill(500), prefill(500)], admissible: 4 })).toEqual([20])
})

test('however slow, a prompt goes on; before anything is measured, carefully', () => {
  expect(tokensOf({ decoding: 1, prefills: [prefill(500)] }, { decodeMs: 4, prefillMsPerToken: 10 })).toEqual([8])
  const unknown = { decodeMs: undefined, prefillMsPerToken: undefined }
  expect(tokensOf({ decoding: 1, prefills: [prefill(500)] }, unknown)).toEqual([8])
})

test('an adapter load uses up the pause that a chunk would have taken', () => {
  expect(plan({ decoding: 1, prefills: [prefill(9)], loadedAdapter: true })).toEqual({
    decode: true,
    chunks: [],
  })
  expect(tokensOf({ prefills: [prefill(9)], loadedAdapter: true })).toEqual([9])
})

test('from time to time the streams decode alone, so that their cost stays known', () => {
  expect(tokensOf({ decoding: 2, prefills: [prefill(500)], decodeAlone: true })).toEqual([])
  expect(tokensOf({ prefills: [prefill(500)], decodeAlone: true })).toEqual([100])
})

test('the prompt that would be done first alone goes first', () => {
  expect(plan({ prefills: [prefill(300), prefill(20)] }).chunks[0]?.index).toBe(1)
  expect(plan({ prefills: [prefill(300), prefill(20, 290)] }).chunks[0]?.index).toBe(0)
})

test('prompts share a run as far as their tokens go, in the order of their turn', () => {
  expect(plan({ prefills: [prefill(300), prefill(20), prefill(30)] }).chunks).toEqual([
    { index: 1, tokens: 20 },
    { index: 2, tokens: 30 },
    { index: 0, tokens: 50 },
  ])
  expect(tokensOf({ decoding: 2, prefills: [prefill(12), prefill(12), prefill(12)] })).toEqual([12, 12, 6])
})

test('what cannot share a run has it for itself, and waits for its turn', () => {
  expect(plan({ prefills: [prefill(30), alone(prefill(20)), prefill(40)] }).chunks).toEqual([{ index: 1, tokens: 20 }])
  expect(plan({ prefills: [prefill(10), alone(prefill(20)), prefill(40)] }).chunks).toEqual([{ index: 0, tokens: 10 }])
})

test('log-probabilities of prompts come in small chunks', () => {
  expect(tokensOf({ prefills: [alone(prefill(300, 0, 32))] })).toEqual([32])
})

test('with nothing to do the plan is empty', () => {
  expect(plan({})).toEqual({ decode: false, chunks: [] })
})
