import { describe, expect, test } from 'vitest'
import { ConfigFields } from '../../../gpu-node/model/config-fields.ts'
import type { RopeTable } from '../../../gpu-node/model/decoder-spec.ts'
import { ropeTable } from '../../../gpu-node/model/rope.ts'
import { type RopeParameters, readRope } from '../../../gpu-node/model/rope-parameters.ts'

const common = { theta: 10_000, partialRotaryFactor: 1 }
const make = (parameters: RopeParameters, { headSize = 64, modelPositions = 4096, positions = 200 } = {}) =>
  ropeTable({ parameters, headSize, modelPositions, positions })

/** What a table says the frequency of pair i is, from the angle of position 1; right below π. */
function frequencies({ rotaryDim, cos, sin }: RopeTable): number[] {
  const width = rotaryDim / 2
  return Array.from({ length: width }, (_, i) => Math.atan2(sin[width + i]!, cos[width + i]!))
}

const plain = (i: number, size = 64) => 10_000 ** ((-2 * i) / size)

function expectClose(actual: number[], expected: number[], relative = 1e-5): void {
  expect(actual).toHaveLength(expected.length)
  for (const [i, value] of actual.entries()) {
    expect(Math.abs(value / expected[i]! - 1)).toBeLessThan(relative)
  }
}

describe('rotary tables against their closed forms', () => {
  test('default: cos and sin of position · θ^(-2i / size)', () => {
    const table = make({ type: 'default', ...common })
    for (const [position, i] of [
      [0, 5],
      [1, 0],
      [199, 0],
      [199, 31],
    ] as const) {
      expect(table.cos[position * 32 + i]).toBeCloseTo(Math.cos(position * plain(i)), 4)
      expect(table.sin[position * 32 + i]).toBeCloseTo(Math.sin(position * plain(i)), 4)
    }
    expect(table.cos).toHaveLength(200 * 32)
  })

  test('a partial table turns the first part of each head as if it were the head', () => {
    const table = make({ type: 'default', theta: 10_000, partialRotaryFactor: 0.75 })
    expect(table.rotaryDim).toBe(48)
    expectClose(
      frequencies(table),
      Array.from({ length: 24 }, (_, i) => plain(i, 48)),
    )
  })

  test('linear divides positions', () => {
    const table = make({ type: 'linear', ...common, factor: 4 })
    expectClose(
      frequencies(table),
      Array.from({ length: 32 }, (_, i) => plain(i) / 4),
    )
  })

  test('dynamic is the plain table and ends at the original length', () => {
    const table = make({ type: 'dynamic', ...common, factor: 2 }, { modelPositions: 64 })
    expect(table.positions).toBe(64)
    expectClose(
      frequencies(table),
      Array.from({ length: 32 }, (_, i) => plain(i)),
    )
  })

  test('llama3 keeps short waves, divides long ones and blends between', () => {
    const [factor, low, high, original] = [8, 1, 4, 512]
    const parameters = { factor, lowFreqFactor: low, highFreqFactor: high, originalPositions: original }
    const table = make({ type: 'llama3', ...common, ...parameters })
    const expected = Array.from({ length: 32 }, (_, i) => {
      const turns = (original * plain(i)) / (2 * Math.PI)
      const kept = Math.min(Math.max((turns - low) / (high - low), 0), 1)
      return plain(i) * (kept + (1 - kept) / factor)
    })
    expect(expected.some((f, i) => f !== plain(i) && f !== plain(i) / factor)).toBe(true)
    expectClose(frequencies(table), expected)
  })

  test('yarn interpolates waves that turn less than once, keeps those that turn 32 times, and sharpens attention', () => {
    const yarn = { factor: 4, originalPositions: 64, betaFast: 32, betaSlow: 1, truncate: true }
    const table = make({ type: 'yarn', ...common, ...yarn })
    const found = frequencies(table)
    const dimension = (turns: number) => (64 * Math.log(64 / (turns * 2 * Math.PI))) / (2 * Math.log(10_000))
    const [low, high] = [Math.max(Math.floor(dimension(32)), 0), Math.ceil(dimension(1))]
    for (const [i, frequency] of found.entries()) {
      const share = Math.min(Math.max((i - low) / (high - low), 0), 1)
      expect(frequency / (plain(i) * (1 - share + share / 4))).toBeCloseTo(1, 4)
    }
    expect(Math.hypot(table.cos[0]!, table.sin[0]!)).toBeCloseTo(0.1 * Math.log(4) + 1, 5)
    const given = make({ type: 'yarn', ...common, ...yarn, attentionFactor: 1 })
    expect(given.cos[0]).toBe(1)
    const weighted = make({ type: 'yarn', ...common, ...yarn, mscale: 1, mscaleAllDim: 0.5 })
    expect(weighted.cos[0]).toBeCloseTo((0.1 * Math.log(4) + 1) / (0.05 * Math.log(4) + 1), 5)
  })

  test('longrope has one table up to its original length and one for longer sequences', () => {
    const shortFactor = Array.from({ length: 32 }, (_, i) => 1 + 0.1 * i)
    const longFactor = Array.from({ length: 32 }, (_, i) => 1 + 0.5 * i)
    const parameters: RopeParameters = { type: 'longrope', ...common, shortFactor, longFactor, originalPositions: 64 }
    const table = make(parameters, { modelPositions: 1024, positions: 100 })
    const expected = (factors: number[]) => factors.map((factor, i) => plain(i) / factor)
    expectClose(frequencies(table), expected(shortFactor))
    expect(table.long!.originalPositions).toBe(64)
    expectClose(frequencies({ ...table, ...table.long }), expected(longFactor))
    // The window grew sixteenfold.
    expect(table.cos[0]).toBeCloseTo(Math.sqrt(1 + Math.log(16) / Math.log(64)), 5)
    expect(make(parameters, { modelPositions: 1024, positions: 64 }).long).toBeUndefined()
    expect(() => make({ ...parameters, longFactor: [1] })).toThrow(/longrope factors for 1 frequencies/)
  })

  test('far positions round as float32 does', () => {
    const table = make({ type: 'default', ...common }, { positions: 100_001 })
    const frequency = Math.fround(1 / Math.fround(10_000 ** Math.fround(2 / 64)))
    const angle = Math.fround(100_000 * frequency)
    expect(table.cos[100_000 * 32 + 1]).toBe(Math.fround(Math.cos(angle)))
  })
})

describe('rotary parameters in config.json', () => {
  const read = (config: Record<string, unknown>) =>
    readRope(new ConfigFields(config), { theta: 10_000, modelPositions: 2048 })

  test('the classic form and that of transformers 5 mean the same', () => {
    const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 }
    const classic = read({ rope_theta: 500_000, rope_scaling: { rope_type: 'llama3', ...scaling } })
    const modern = { rope_type: 'llama3', rope_theta: 500_000, ...scaling }
    expect(read({ rope_parameters: modern })).toEqual(classic)
    expect(read({ rope_parameters: { full_attention: modern } })).toEqual(classic)
    expect(classic).toMatchObject({ theta: 500_000, factor: 8, originalPositions: 8192 })
  })

  test('`type` is the older name of `rope_type`, and the original length falls back as in transformers', () => {
    expect(read({ rope_scaling: { type: 'linear', factor: 2 } })).toMatchObject({ type: 'linear', factor: 2 })
    const yarn = { rope_type: 'yarn', factor: 4 }
    expect(read({ rope_scaling: yarn })).toMatchObject({ originalPositions: 2048 })
    const inside = { ...yarn, original_max_position_embeddings: 64 }
    expect(read({ rope_scaling: inside })).toMatchObject({ originalPositions: 64 })
    expect(read({ rope_scaling: inside, original_max_position_embeddings: 32 })).toMatchObject({
      originalPositions: 32,
    })
  })

  test.each<[Record<string, unknown>, RegExp]>([
    [{ rope_scaling: { rope_type: 'mrope' } }, /rope_type = "mrope"/],
    [{ rope_scaling: { rope_type: 'linear' } }, /lacks 'factor'/],
    [
      { rope_scaling: { rope_type: 'linear', factor: 2, mrope_section: [8] } },
      /unknown rope parameters.*mrope_section/,
    ],
    [{ rope_scaling: { rope_type: 'linear', factor: 0.5 } }, /factor = 0.5/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor = 0.5/],
    [
      { rope_parameters: { full_attention: { rope_theta: 1e6 }, sliding_attention: { rope_theta: 1e4 } } },
      /the same for all kinds of layers/,
    ],
  ])('%j is refused', (config, message) => {
    expect(() => read(config)).toThrow(message)
  })
})
