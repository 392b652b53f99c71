import { expect, test } from 'vitest'
import { RUNS_UNTIL_DECODE_ALONE, RunCost } from '../../../gpu-node/engine/run-cost.ts'

/** Milliseconds of a made-up machine. */
const took = (rows: number, tokens: number, slowdown = 1): number => slowdown * (3 + 1.5 * rows + 0.8 * tokens)

test('before anything is measured nothing is known', () => {
  const cost = new RunCost()
  expect(cost.decodeMs(4)).toBeUndefined()
  cost.measure(0, 100, took(0, 100))
  expect(cost.decodeMs(4)).toBeUndefined()
  expect(cost.prefillMsPerToken).toBeCloseTo(0.83, 2)
})

test('the costs of decodes and prompt tokens come out of runs that mix them', () => {
  const cost = new RunCost()
  for (let i = 0; i < 400; i++) {
    const [rows, tokens] = [
      [8, 0],
      [8, 12],
      [4, 0],
      [2, 30],
      [0, 60],
    ][i % 5] as [number, number]
    cost.measure(rows, tokens, took(rows, tokens))
  }
  for (const rows of [4, 8]) {
    expect(Math.abs((cost.decodeMs(rows) as number) / took(rows, 0) - 1)).toBeLessThan(0.1)
  }
  expect(Math.abs((cost.prefillMsPerToken as number) - 0.8)).toBeLessThan(0.2)
})

test('runs that all mix the same rows and tokens still tell what each costs, with a decode alone now and then', () => {
  const cost = new RunCost()
  // Learned at a time when the machine was half as fast.
  for (let i = 0; i < 40; i++) {
    cost.measure(8, 0, took(8, 0, 2))
    cost.measure(0, 128, took(0, 128, 2))
  }
  let alone = 0
  for (let i = 0; i < 20 * RUNS_UNTIL_DECODE_ALONE; i++) {
    const tokens = cost.wantsDecodeAlone ? 0 : 5
    alone += tokens === 0 ? 1 : 0
    cost.measure(8, tokens, took(8, tokens))
  }
  expect(alone).toBe(19)
  expect(Math.abs((cost.decodeMs(8) as number) / took(8, 0) - 1)).toBeLessThan(0.05)
  expect(Math.abs((cost.prefillMsPerToken as number) - 0.8)).toBeLessThan(0.1)
})

test('when the machine slows down, they follow within some runs', () => {
  const cost = new RunCost()
  for (let i = 0; i < 100; i++) {
    cost.measure(8, 16 * (i % 2), took(8, 16 * (i % 2)))
  }
  for (let i = 0; i < 40; i++) {
    cost.measure(8, 16 * (i % 2), took(8, 16 * (i % 2), 2))
  }
  expect(Math.abs((cost.decodeMs(8) as number) / took(8, 0, 2) - 1)).toBeLessThan(0.1)
})

test('a run that took no measurable time costs nothing, never less', () => {
  const cost = new RunCost()
  cost.measure(8, 0, 20)
  cost.measure(8, 128, 0)
  expect(cost.prefillMsPerToken).toBe(0)
  expect(cost.decodeMs(1)).toBeGreaterThanOrEqual(0)
})
