import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { largestDifference } from '../../../gpu-node/adapters/merge/largest-difference.ts'
import { mergeAdapters } from '../../../gpu-node/adapters/merge/merge.ts'
import { toRecipe } from '../../../gpu-node/adapters/merge/merge-checks.ts'
import { pruneByMagnitude } from '../../../gpu-node/adapters/merge/task-arithmetic.ts'
import { readPeftAdapter } from '../../../gpu-node/adapters/peft.ts'
import { type Checkpoint, openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import type { LoraAdapter, LoraModule } from '../../../gpu-node/model/packed-adapter.ts'
import type { AdapterSelection, MergeStrategy, SignMethod } from '../../../shared/adapter-ref.ts'
import { LLAMA_ADAPTERS, LLAMA_BASE } from '../../support/golden-fixtures.ts'

type Merge = Extract<AdapterSelection, { kind: 'merge' }>

interface GoldenMerge {
  name: string
  strategy: MergeStrategy
  ids: string[]
  weights: number[]
  density?: number
  majority_sign_method?: SignMethod
  adapter: string
}

const golden = JSON.parse(readFileSync(join(LLAMA_BASE, '../golden.json'), 'utf8')) as { merges: GoldenMerge[] }
let base: Checkpoint

beforeAll(async () => {
  base = await openCheckpoint(LLAMA_BASE)
})

afterAll(() => base.close())

const read = async (name: string) => (await readPeftAdapter(join(LLAMA_ADAPTERS, name), base.spec)).adapter

function selection(strategy: MergeStrategy, weights: number[], more: Partial<Merge> = {}): Merge {
  const parts = weights.map((weight, i) => ({ ref: { source: 'local' as const, id: `p${i}` }, weight }))
  return { kind: 'merge', strategy, parts, ...more }
}

/** B·A·scaling of a module, by the plain sum. */
function delta({ loraA, loraB, rank, scaling }: LoraModule): Float64Array {
  const inFeatures = loraA.length / rank
  const outFeatures = loraB.length / rank
  const out = new Float64Array(outFeatures * inFeatures)
  for (let o = 0; o < outFeatures; o++) {
    for (let i = 0; i < inFeatures; i++) {
      for (let r = 0; r < rank; r++) {
        out[o * inFeatures + i]! += loraB[o * rank + r]! * loraA[r * inFeatures + i]! * scaling
      }
    }
  }
  return out
}

describe('equals PEFT’s add_weighted_adapter, tensor by tensor', () => {
  it.each(golden.merges)('$name', async (merge) => {
    const parts = await Promise.all(merge.ids.map(read))
    const recipe = toRecipe(
      selection(merge.strategy, merge.weights, {
        ...(merge.density === undefined ? {} : { density: merge.density }),
        ...(merge.majority_sign_method === undefined ? {} : { signMethod: merge.majority_sign_method }),
      }),
    )
    const merged = mergeAdapters(parts, recipe, 'merged')
    const expected = await read(merge.adapter)
    expect(merged.modules.map((module) => module.name).sort()).toEqual(
      expected.modules.map((module) => module.name).sort(),
    )
    for (const wanted of expected.modules) {
      expect(merged.modules.find((module) => module.name === wanted.name)!.scaling).toBe(wanted.scaling)
    }
    expect(largestDifference(merged, expected)).toBeLessThan(1e-5)
  })

  it('a difference in one element would be seen', async () => {
    const [one, other] = await Promise.all([read('merge-a'), read('merge-a')])
    expect(largestDifference(one!, other!)).toBe(0)
    other!.modules[3]!.loraB[17]! += 0.5
    expect(largestDifference(one!, other!)).toBeCloseTo(0.5, 5)
    expect(largestDifference(one!, await read('wide-r48'))).toBe(Number.POSITIVE_INFINITY)
  })
})

describe('cat', () => {
  it('is the exact weighted sum of the deltas, for any ranks and alphas', async () => {
    const parts = await Promise.all(['merge-a', 'patterns', 'attention-r16-rslora'].map(read))
    const weights = [0.5, -2, 0.25]
    const merged = mergeAdapters(parts, toRecipe(selection('cat', weights)), 'x')
    for (const module of merged.modules) {
      const sum = delta(module)
      for (const [i, part] of parts.entries()) {
        const own = part.modules.find((candidate) => candidate.name === module.name)
        own &&
          delta(own).forEach((value, e) => {
            sum[e]! -= weights[i]! * value
          })
      }
      expect(Math.max(...sum.map(Math.abs))).toBeLessThan(1e-5)
    }
    expect(merged.maxRank).toBe(8 + 4 + 16)
  })
})

describe('DARE', () => {
  const ones = (count: number): LoraAdapter => ({
    digest: 'ones',
    maxRank: 1,
    modules: [
      {
        name: 'm',
        rank: 1,
        loraA: new Float32Array(count).fill(1),
        loraB: new Float32Array(count).fill(1),
        scaling: 1,
      },
    ],
    savedModules: [],
  })
  const dropped = (seed: number, density: number, strategy: MergeStrategy = 'dare_linear') =>
    mergeAdapters([ones(20_000), ones(20_000)], toRecipe(selection(strategy, [1, 0], { density, seed })), 'x')
      .modules[0]!.loraA

  it('keeps each element with the density’s probability and divides it by the density', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 2 ** 40 }),
        fc.double({ min: 0.05, max: 0.95, noNaN: true }),
        (seed, density) => {
          const values = dropped(seed, density)
          const kept = values.filter((value) => value !== 0)
          expect(kept.every((value) => Math.abs(value - 1 / density) < 1e-5 / density)).toBe(true)
          // Six standard deviations of a binomial: once in 500 million draws.
          expect(Math.abs(kept.length - 20_000 * density)).toBeLessThan(6 * Math.sqrt(20_000 * density * (1 - density)))
        },
      ),
      { numRuns: 30, seed: 3 },
    )
  })

  it('drops the same elements for the same seed, others for another, in each part and matrix its own', () => {
    expect(dropped(7, 0.5)).toEqual(dropped(7, 0.5))
    const agreement = (a: Float32Array, b: Float32Array) =>
      a.filter((value, i) => (value === 0) === (b[i] === 0)).length / a.length
    expect(agreement(dropped(7, 0.5), dropped(8, 0.5))).toBeLessThan(0.53)
    const { loraA, loraB } = mergeAdapters(
      [ones(20_000), ones(20_000)],
      toRecipe(selection('dare_linear', [1, 0], { density: 0.5 })),
      'x',
    ).modules[0]!
    expect(agreement(loraA, loraB)).toBeLessThan(0.53)
    const second = mergeAdapters(
      [ones(20_000), ones(20_000)],
      toRecipe(selection('dare_linear', [0, 1], { density: 0.5 })),
      'x',
    ).modules[0]!
    expect(agreement(loraA, second.loraA)).toBeLessThan(0.53)
  })
})

describe('pruning by magnitude', () => {
  it('keeps as many as PEFT, and none smaller than one that goes', () => {
    const floats = fc.float32Array({ minLength: 1, maxLength: 200, noNaN: true, noDefaultInfinity: true })
    fc.assert(
      fc.property(floats, fc.double({ min: 0, max: 1, noNaN: true }), (values, density) => {
        const pruned = pruneByMagnitude(values, density)
        const keep = Math.trunc(density * values.length)
        const order = [...values].map(Math.abs).sort((a, b) => b - a)
        const kept = [...pruned].map(Math.abs).sort((a, b) => b - a)
        expect(kept.slice(0, keep)).toEqual(order.slice(0, keep))
        expect(kept.slice(keep).every((value) => value === 0)).toBe(true)
        expect(pruned.every((value, i) => value === 0 || value === values[i])).toBe(true)
      }),
      { numRuns: 300, seed: 4 },
    )
  })
})

describe('refusals', () => {
  it.each<[string, Merge, RegExp]>([
    ['ties without density', selection('ties', [1, 1]), /needs a density/],
    ['dare_linear without density', selection('dare_linear', [1, 1]), /needs a density/],
    ['a density of zero', selection('dare_ties', [1, 1], { density: 0 }), /above 0 and at most 1; given: 0/],
    ['a density above one', selection('ties', [1, 1], { density: 1.5 }), /given: 1.5/],
    ['a weight that is no number', selection('linear', [1, Number.NaN]), /finite numbers; given: NaN/],
    ['no adapter', selection('linear', []), /given: 0/],
    ['too many adapters', selection('cat', Array(33).fill(1)), /given: 33/],
    ['a seed that is no integer', selection('dare_linear', [1, 1], { density: 0.5, seed: 0.5 }), /seed/],
  ])('%s', (_, merge, message) => {
    expect(() => toRecipe(merge)).toThrow(
      expect.objectContaining({ code: 'merge_invalid', message: expect.stringMatching(message) }),
    )
  })

  it('different ranks where the maths needs equal ones, DoRA, biases, saved modules, no effect', async () => {
    const merge = async (names: string[], strategy: MergeStrategy, weights = names.map(() => 1)) =>
      mergeAdapters(await Promise.all(names.map(read)), toRecipe(selection(strategy, weights, { density: 0.5 })), 'x')
    await expect(merge(['merge-a', 'attention-r16-rslora'], 'linear')).rejects.toThrow(
      /rank 8 in adapter 1 and 16 in adapter 2; cat/,
    )
    await expect(merge(['merge-a', 'dora-r8'], 'cat')).rejects.toThrow(/adapter 2 of 2 has DoRA's magnitudes on/)
    await expect(merge(['bias-lora-only', 'merge-a'], 'cat')).rejects.toThrow(/adapter 1 of 2 has a bias of lora_B/)
    await expect(merge(['merge-a', 'saves-head'], 'linear')).rejects.toThrow(/replaces lm_head as a whole/)
    await expect(merge(['merge-a', 'merge-b'], 'linear', [0, 0])).rejects.toThrow(/no effect/)
  })

  it('weights so large that the result is no numbers', async () => {
    const parts = [await read('merge-a'), await read('merge-b')]
    for (const strategy of ['linear', 'ties', 'dare_linear', 'dare_ties', 'cat'] as const) {
      const recipe = toRecipe(selection(strategy, [1e300, 1e300], { density: 1 }))
      expect(() => mergeAdapters(parts, recipe, 'x'), strategy).toThrow(
        /too large: model\.layers.* leaves single precision/,
      )
    }
  })

  it('fields that a strategy does not use do not make another merge', () => {
    expect(toRecipe(selection('linear', [1, 2], { density: 0, seed: 3, signMethod: 'frequency' }))).toEqual(
      toRecipe(selection('linear', [1, 2])),
    )
    expect(toRecipe(selection('ties', [2], { density: 0.5 }))).toEqual(toRecipe(selection('linear', [2])))
    expect(toRecipe(selection('dare_linear', [1, 2], { density: 0.5 }))).toEqual(
      toRecipe(selection('dare_linear', [1, 2], { density: 0.5, seed: 0 })),
    )
  })
})
