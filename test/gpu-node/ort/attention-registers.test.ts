import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { blockVectors, scoreChunks, valueChunks } from '../../../gpu-node/ort/attention-kernel/attention-registers.ts'
import { Avx2Assembler } from '../../../gpu-node/ort/machine-code/avx2.ts'
import { Avx512Assembler } from '../../../gpu-node/ort/machine-code/avx512.ts'

const shapes = fc.record({
  headSize: fc.integer({ min: 1, max: 16 }).map((blocks) => 16 * blocks),
  group: fc.integer({ min: 1, max: 32 }),
})

/** Numbers below `count`, for each of which something is to be there. */
function below(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i)
}

describe.each([
  ['AVX2', new Avx2Assembler()],
  ['AVX-512', new Avx512Assembler()],
] as const)('registers of the attention kernel with %s', (_, code) => {
  const allDiffer = (registers: number[]): void => {
    expect(new Set(registers).size).toBe(registers.length)
    expect(registers.every((register) => register >= 0 && register < code.vectors)).toBe(true)
  }

  test('scores: every head once, and nothing in a register twice', () => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const chunks = scoreChunks(code, shape)
        expect(chunks.flatMap(({ heads }) => heads)).toEqual(below(shape.group))
        for (const { heads, chains, query, key, sum } of chunks) {
          const vectors = below(blockVectors(code))
          const sums = heads.flatMap((_, i) => vectors.flatMap((v) => below(chains).map((chain) => sum(i, v, chain))))
          for (const element of [0, 1]) {
            allDiffer([...vectors.map((v) => key(element, v)), ...(query === undefined ? [] : [query]), ...sums])
          }
        }
      }),
    )
  })

  test('values: every part of every head once, and nothing in a register twice', () => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const chunks = valueChunks(code, shape)
        const parts = shape.headSize / code.lanes
        const summed = chunks.flatMap(({ heads, parts: some }) => heads.flatMap((h) => some.map((p) => h * parts + p)))
        expect(summed.toSorted((a, b) => a - b)).toEqual(below(shape.group * parts))
        for (const { heads, parts: some, value, power, sum } of chunks) {
          const sums = heads.flatMap((_, i) => some.map((_, j) => sum(i, j)))
          allDiffer([value(0), value(1), ...heads.map((_, i) => power(i)), ...sums])
        }
      }),
    )
  })
})
