import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { runGoldenCase } from '../../../gpu-node/cli/golden-case.ts'
import { compareLogits } from '../../../gpu-node/cli/golden-compare.ts'

const folder = join(import.meta.dirname, '../../fixtures/goldens')

describe('logits and greedy tokens of the reference, alone and all runs in one batch', () => {
  test.each(['llama', 'gemma2', 'gpt2', 'phi3-longrope', 'qwen3-moe'])('%s in f32', async (name) => {
    const { rows, notCovered } = await runGoldenCase(join(folder, name), name, 'f32')
    expect(notCovered).toEqual([])
    expect(rows.length).toBeGreaterThanOrEqual(6)
    expect(rows.filter((row) => !row.ok)).toEqual([])
    expect(Math.max(...rows.map((row) => row.maxDifference))).toBeLessThan(1e-3)
  })

  test('llama in int8 is near', async () => {
    const { rows } = await runGoldenCase(join(folder, 'llama'), 'llama', 'int8')
    const relative = rows.map((row) => row.relative)
    expect(Math.sqrt(relative.reduce((sum, it) => sum + it * it, 0) / rows.length)).toBeLessThan(0.14)
    expect(Math.max(...relative)).toBeLessThan(0.4)
    const changes = rows.flatMap((row) => row.perplexityChange ?? [])
    expect(Math.max(...changes.map(Math.abs))).toBeLessThan(0.05)
  })
})

describe('what goes wrong is told', () => {
  test('a logit that is no number is an infinite difference, wherever it stands', () => {
    for (const at of [0, 1, 3]) {
      const logits = Float32Array.of(1, 2, 3, 4)
      logits[at] = Number.NaN
      expect(compareLogits(logits, Float32Array.of(1, 2, 3, 4)).maxDifference).toBe(Number.POSITIVE_INFINITY)
    }
  })

  test('a case that can’t be run is named, with the reason', async () => {
    const open = () => Promise.reject(new Error('no such device'))
    const report = await runGoldenCase(join(folder, 'gpt2'), 'gpt2', 'int8', { open })
    expect(report).toEqual({ name: 'gpt2', rows: [], notCovered: ['its runs: no such device'] })
  })
})
