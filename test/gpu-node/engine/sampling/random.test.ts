import { expect, test } from 'vitest'
import { philox4x32, uniform, type Words4 } from '../../../../gpu-node/engine/sampling/philox.ts'
import { greenTokens, mersenneTwister, permutationHead } from '../../../../gpu-node/engine/sampling/watermark.ts'

/** Known answers that come with Random123, the reference implementation (kat_vectors, philox 4x32 10). */
test.each<[Words4, [number, number], Words4]>([
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
])('Philox4x32-10 of %j with key %j', (counter, key, expected) => {
  expect(philox4x32(counter, key)).toEqual(expected)
})

test('draws lie in [0, 1), and seeds and numbers all count', () => {
  const draws = [0, 1, 2 ** 33].flatMap((seed) => Array.from({ length: 500 }, (_, n) => uniform(seed, n)))
  expect(new Set(draws).size).toBe(1500)
  expect(Math.min(...draws)).toBeGreaterThanOrEqual(0)
  expect(Math.max(...draws)).toBeLessThan(1)
  const mean = draws.reduce((a, b) => a + b, 0) / draws.length
  expect(Math.abs(mean - 0.5)).toBeLessThan(0.05)
})

/** The first outputs of the reference MT19937 with its default seed, 5489. */
test('the Mersenne Twister gives the reference sequence', () => {
  const next = mersenneTwister(5489)
  expect([next(), next(), next(), next(), next()]).toEqual([3499211612, 581869302, 3890346734, 3586334585, 545404204])
  const another = mersenneTwister(5489)
  const first10000 = Array.from({ length: 10_000 }, another)
  // 26.5.5 of the C++ standard names the 10,000th.
  expect(first10000.at(-1)).toBe(4123659995)
})

/** `torch.randperm(10, generator=torch.Generator().manual_seed(0))`. */
test('the permutation is PyTorch’s', () => {
  expect([...permutationHead(10, 10, mersenneTwister(0))]).toEqual([4, 1, 7, 5, 3, 9, 0, 8, 6, 2])
  expect([...permutationHead(10, 4, mersenneTwister(0))]).toEqual([4, 1, 7, 5])
})

test('half the vocabulary is green, another half after another token', () => {
  const green = greenTokens(1000, 5)
  expect(new Set(green).size).toBe(500)
  const other = new Set(greenTokens(1000, 6))
  const shared = green.filter((token) => other.has(token)).length
  expect(shared).toBeGreaterThan(200)
  expect(shared).toBeLessThan(300)
})
