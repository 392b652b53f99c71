import fc from 'fast-check'
import { expect, test } from 'vitest'
import { LogitsKernel, NO_WEIGHT } from '../../../../gpu-node/engine/sampling/logits-kernel.ts'

const row = fc
  .integer({ min: 1, max: 200 })
  .chain((length) =>
    fc.float32Array({ minLength: length, maxLength: length, min: -60, max: 60, noNaN: true, noDefaultInfinity: true }),
  )

test('the passes over a row equal their plain versions, for any length', () => {
  fc.assert(
    fc.property(row, fc.constantFrom(0.4, 1, 3), (scores, scale) => {
      const kernel = new LogitsKernel(scores.length)
      kernel.scores.set(scores)
      const best = Math.max(...scores)
      expect(kernel.max()).toBe(best)
      expect(kernel.indexOf(best)).toBe(scores.indexOf(best))
      const sum = scores.reduce((total, score) => total + Math.exp(score - best), 0)
      expect(Math.abs(kernel.sumExp(best) / sum - 1)).toBeLessThan(1e-6)
      const weights = scores.map((score) => Math.exp((score - best) * scale))
      const total = weights.reduce((a, b) => a + b, 0)
      expect(Math.abs(kernel.weigh(best, scale) / total - 1)).toBeLessThan(1e-5)
      for (const [i, weight] of weights.entries()) {
        // Rounding of (score − best) · scale · log2(e) comes on top of the polynomial's error.
        expect(Math.abs((kernel.weights[i] as number) - weight)).toBeLessThanOrEqual(weight * 5e-5 + NO_WEIGHT)
      }
    }),
  )
})

test('a NaN anywhere shows in the largest score', () => {
  for (const at of [0, 5, 16, 36]) {
    const kernel = new LogitsKernel(37)
    kernel.scores.fill(1)
    kernel.scores[at] = Number.NaN
    expect(kernel.max()).toBeNaN()
  }
})

test('impossible tokens weigh nothing', () => {
  const kernel = new LogitsKernel(5)
  kernel.scores.set([0, -Infinity, -1, -500, -Infinity])
  kernel.weigh(0, 1)
  expect([...kernel.weights].map((weight) => weight > NO_WEIGHT)).toEqual([true, false, true, false, false])
})
