import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { SamplingParams } from '../../../../gpu-node/engine/engine-types.ts'
import { uniform } from '../../../../gpu-node/engine/sampling/philox.ts'
import { Sampler } from '../../../../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../../../../gpu-node/engine/sampling/score-changes.ts'
import { GREEDY } from '../../../support/engine-harness.ts'
import { slowSample } from '../../../support/slow-sampler.ts'

const VOCAB = 300
const sampler = new Sampler(VOCAB)

interface Case {
  prompt?: number[]
  generated?: number[]
  mask?: Int32Array
}

function sample(
  logits: Float32Array,
  params: Partial<SamplingParams>,
  { prompt = [0], generated = [], mask }: Case = {},
) {
  const whole = { ...GREEDY, ...params }
  return sampler.sample(logits, {
    params: whole,
    history: new TokenHistory(whole, Int32Array.from(prompt), Int32Array.from(generated)),
    previousToken: [...prompt, ...generated].at(-1) as number,
    draw: generated.length,
    mask,
  })
}

function tokenOf(draw: ReturnType<typeof sample>) {
  if (draw.kind !== 'token') {
    throw new Error(draw.kind)
  }
  return draw.token
}

const logits = fc
  .tuple(fc.maxSafeNat(), fc.constantFrom(1, 4, 20))
  .map(([seed, spread]) => Float32Array.from({ length: VOCAB }, (_, i) => (2 * uniform(seed, i) - 1) * spread))
/** With a few values only, so that ties decide. */
const tiedLogits = fc
  .noShrink(fc.array(fc.integer({ min: -3, max: 3 }), { minLength: VOCAB, maxLength: VOCAB }))
  .map((values) => Float32Array.from(values))

const params = fc.record(
  {
    doSample: fc.boolean(),
    temperature: fc.constantFrom(0, 0.3, 0.8, 1, 2.5),
    seed: fc.maxSafeNat(),
    topK: fc.constantFrom(1, 2, 10, 150, VOCAB, 1000),
    topP: fc.constantFrom(0.05, 0.5, 0.9, 0.999),
    minP: fc.constantFrom(0.01, 0.2, 1),
    typicalP: fc.constantFrom(0.05, 0.5, 0.95),
    repetitionPenalty: fc.constantFrom(0.7, 1.2, 3),
    frequencyPenalty: fc.constantFrom(-1, 0.3, 2),
    presencePenalty: fc.constantFrom(-1, 0.3, 2),
    logitBias: fc.array(fc.tuple(fc.nat(VOCAB - 1), fc.constantFrom(-100, -2, 5)), { maxLength: 4 }),
  },
  { requiredKeys: ['doSample', 'temperature', 'seed'] },
)
const seenTokens = fc.array(fc.nat(VOCAB - 1), { maxLength: 20 })

test('draws what the slow sampler draws', () => {
  const anyLogits = fc.oneof(logits, tiedLogits)
  let sure = 0
  fc.assert(
    fc.property(anyLogits, params, seenTokens, seenTokens, (row, chosen, prompt, generated) => {
      const whole = { ...GREEDY, ...chosen }
      const random = uniform(whole.seed, generated.length)
      const slow = slowSample(row, whole, { prompt: [0, ...prompt], generated }, random)
      // Single precision may fall on the other side of a limit that is this near.
      if (slow.margin > 1e-5) {
        sure++
        expect(tokenOf(sample(row, whole, { prompt: [0, ...prompt], generated })).tokenId).toBe(slow.tokenId)
      }
    }),
    { numRuns: 3000 },
  )
  expect(sure).toBeGreaterThan(1500)
})

test('typical_p: a token whose probability underflows to nothing leaves the others their chances', () => {
  const row = new Float32Array(VOCAB).fill(-2000)
  row.set([1, 1.2, 0.9], 10)
  for (let seed = 0; seed < 50; seed++) {
    const { tokenId } = tokenOf(sample(row, { doSample: true, temperature: 0.3, typicalP: 0.5, seed }))
    expect([10, 11, 12]).toContain(tokenId)
  }
})

test('log-probabilities are those of the model, whatever sampling does', () => {
  fc.assert(
    fc.property(logits, params, (row, chosen) => {
      const token = tokenOf(sample(row, { ...chosen, alternatives: 5 }))
      const best = Math.max(...row)
      const logTotal = best + Math.log(row.reduce((sum, score) => sum + Math.exp(score - best), 0))
      expect(token.logprob).toBeCloseTo((row[token.tokenId] as number) - logTotal, 5)
      const sorted = Array.from(row.keys()).sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
      expect(token.alternatives?.map(({ tokenId }) => tokenId)).toEqual(sorted.slice(0, 5))
      for (const { tokenId, logprob } of token.alternatives ?? []) {
        expect(logprob).toBeCloseTo((row[tokenId] as number) - logTotal, 5)
      }
    }),
  )
})

test('many alternatives come in the same order as few', () => {
  fc.assert(
    fc.property(tiedLogits, (row) => {
      const many = tokenOf(sample(row, { alternatives: 200 })).alternatives ?? []
      const few = tokenOf(sample(row, { alternatives: 7 })).alternatives ?? []
      expect(many).toHaveLength(200)
      expect(many.slice(0, 7)).toEqual(few)
    }),
    { numRuns: 20 },
  )
})

test('a seed draws each token as often as its probability says', () => {
  const row = new Float32Array(VOCAB).fill(-Infinity)
  row.set([Math.log(0.5), Math.log(0.3), Math.log(0.2)], 10)
  const counts = [0, 0, 0]
  const draws = 20_000
  for (let draw = 0; draw < draws; draw++) {
    const { token } = sampler.sample(row, {
      params: { ...GREEDY, doSample: true, seed: 4 },
      history: new TokenHistory(GREEDY, new Int32Array(0), new Int32Array(0)),
      previousToken: 0,
      draw,
      mask: undefined,
    }) as { token: { tokenId: number } }
    counts[token.tokenId - 10] = (counts[token.tokenId - 10] ?? 0) + 1
  }
  // Five standard deviations of the largest count.
  const tolerance = 5 * Math.sqrt(draws * 0.25)
  for (const [i, p] of [0.5, 0.3, 0.2].entries()) {
    expect(Math.abs((counts[i] as number) - p * draws)).toBeLessThan(tolerance)
  }
})

test('a mask allows its tokens only', () => {
  fc.assert(
    fc.property(
      logits,
      params,
      fc.uniqueArray(fc.nat(VOCAB - 1), { minLength: 1, maxLength: 5 }),
      (row, chosen, allowed) => {
        const mask = new Int32Array(Math.ceil(VOCAB / 32))
        for (const token of allowed) {
          mask[token >> 5] = (mask[token >> 5] as number) | (1 << (token & 31))
        }
        expect(allowed).toContain(tokenOf(sample(row, chosen, { mask })).tokenId)
      },
    ),
  )
  expect(sample(new Float32Array(VOCAB), {}, { mask: new Int32Array(10) })).toEqual({ kind: 'nothing_allowed' })
})

test.each([Number.NaN, Number.POSITIVE_INFINITY])('a row with %s is refused', (bad) => {
  const row = new Float32Array(VOCAB)
  row[7] = bad
  expect(sample(row, { doSample: true })).toEqual({ kind: 'not_finite' })
})

test('a tiny temperature is greedy, not an overflow', () => {
  const row = Float32Array.from({ length: VOCAB }, (_, i) => Math.sin(i))
  const greedy = tokenOf(sample(row, {})).tokenId
  for (const temperature of [1e-5, 1e-30, 1e-300]) {
    expect(tokenOf(sample(row, { doSample: true, temperature })).tokenId).toBe(greedy)
  }
})

test('a huge temperature makes all allowed tokens alike', () => {
  const row = Float32Array.from({ length: VOCAB }, (_, i) => Math.sin(i))
  const mask = new Int32Array(Math.ceil(VOCAB / 32))
  mask[0] = 0b111 << 20
  for (const temperature of [1e30, 1e39, 1e300]) {
    const drawn = new Set<number>()
    for (let seed = 0; seed < 50; seed++) {
      drawn.add(tokenOf(sample(row, { doSample: true, temperature, seed }, { mask })).tokenId)
    }
    expect([temperature, [...drawn].sort()]).toEqual([temperature, [20, 21, 22]])
  }
})

test.each<[string, Partial<SamplingParams>]>([
  ['frequency_penalty', { frequencyPenalty: -1e300 }],
  ['presence_penalty', { presencePenalty: -3.4e38 }],
  ['repetition_penalty', { repetitionPenalty: 1e-40 }],
  ['logit_bias', { logitBias: [[9, 1e300]] }],
])('a %s that lifts a score out of single precision draws that token, and no other', (_, params) => {
  const row = Float32Array.from({ length: VOCAB }, (_, i) => 1 + Math.sin(i))
  for (const truncation of [{}, { topK: 5 }, { topP: 0.5 }, { minP: 0.1 }, { typicalP: 0.5 }]) {
    const draw = sample(
      row,
      { doSample: true, temperature: 1, ...params, ...truncation },
      { prompt: [], generated: [9] },
    )
    expect([truncation, tokenOf(draw).tokenId]).toEqual([truncation, 9])
  }
})
