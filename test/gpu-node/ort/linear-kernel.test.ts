import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GraphWriter } from '../../../gpu-node/model/graph/graph-writer.ts'
import { allocateQuantised, dequantise, quantiseRows } from '../../../gpu-node/model/quantise.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import {
  fitsLinearKernel,
  linearShapeWords,
  tiledBytes,
  tileMatrix,
} from '../../../gpu-node/ort/linear-kernel/linear-layout.ts'
import { installLinearOp, linearOpType, linearSets } from '../../../gpu-node/ort/linear-kernel/linear-op.ts'
import type { KernelSegment } from '../../../gpu-node/ort/lora-kernel/kernel-layout.ts'
import { addressOf } from '../../../gpu-node/ort/lora-kernel/lora-op.ts'
import {
  packTiled,
  RECORD_WORDS,
  tiledObjection,
  writeTiledRecord,
} from '../../../gpu-node/ort/lora-kernel/tiled-layout.ts'
import { createOpDomain, OP_DOMAIN } from '../../../gpu-node/ort/machine-code/custom-op.ts'
import type { InstructionSet } from '../../../gpu-node/ort/machine-code/instruction-sets.ts'
import { OrtSession } from '../../../gpu-node/ort/session.ts'
import { OrtTensor } from '../../../gpu-node/ort/tensor.ts'

const environment = new OrtEnvironment(2)

/** What the kernel must give: x rounded to int8 in blocks of 32, then a plain product in float64. */
function slowProduct(x: Float32Array, weight: Float32Array, inputs: number, outs: number): Float64Array {
  const tokens = x.length / inputs
  const rounded = Float64Array.from(x)
  for (let start = 0; start < x.length; start += 32) {
    const block = rounded.subarray(start, start + 32)
    const largest = block.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-30)
    block.forEach((value, i) => {
      block[i] = (Math.round((value * 127) / largest) * largest) / 127
    })
  }
  const y = new Float64Array(tokens * outs)
  for (let t = 0; t < tokens; t++) {
    for (let o = 0; o < outs; o++) {
      for (let k = 0; k < inputs; k++) {
        y[t * outs + o]! += rounded[t * inputs + k]! * weight[o * inputs + k]!
      }
    }
  }
  return y
}

function quantised(inputs: number, outs: number, values: Float32Array) {
  const matrix = allocateQuantised(outs, inputs, 8)
  quantiseRows(matrix, 0, values)
  return { tiled: tileMatrix(inputs, outs, matrix.weight, matrix.scales), weight: dequantise(matrix) }
}

/** The same in float64, with what surrounds it; and of each output by how much an error of 1 in all products could move it. */
function slowAround(
  inputs: number,
  outs: number,
  weight: Float32Array,
  given: Float32Array,
  around: Around,
): { value: number; slope: number; largest: number }[] {
  const { norm, bias, addTo, base, gated, parts = [outs], adapters } = around
  const tokens = given.length / inputs
  const x = Float32Array.from(given)
  for (let t = 0; t < tokens && norm !== undefined; t++) {
    const row = x.subarray(t * inputs, (t + 1) * inputs)
    const factor = 1 / Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / inputs + EPSILON)
    row.forEach((value, k) => {
      row[k] = value * factor * norm[k]!
    })
  }
  const y = base === undefined ? slowProduct(x, weight, inputs, outs) : Float64Array.from(base)
  return Array.from({ length: tokens }, (_, t) => {
    const row = [...y.subarray(t * outs, (t + 1) * outs)].map(
      (value, o) => value + (base === undefined ? (bias?.[o] ?? 0) : 0),
    )
    for (const { part, rank, loraA, loraB, scaling } of adapters?.[t] ?? []) {
      const first = parts.slice(0, part).reduce((sum, n) => sum + n, 0)
      for (let r = 0; r < rank; r++) {
        const projected = loraA
          .subarray(r * inputs, (r + 1) * inputs)
          .reduce((sum, value, k) => sum + value * x[t * inputs + k]!, 0)
        for (let o = 0; o < parts[part]!; o++) {
          row[first + o]! += projected * scaling * loraB[o * rank + r]!
        }
      }
    }
    const largest = row.reduce((most, value) => Math.max(most, Math.abs(value)), 1)
    const gates = row.splice(0, gated ? outs / 2 : 0)
    return row.map((value, i) => {
      const gate = gates[i] ?? 0
      const sum = addTo?.[t * row.length + i] ?? 0
      // The slope of silu is at most 1.1, and silu(g) at most |g|.
      return gated
        ? {
            value: (gate / (1 + Math.exp(-gate))) * value + sum,
            slope: Math.abs(gate) + 1.1 * Math.abs(value),
            largest,
          }
        : { value: value + sum, slope: 1, largest }
    })
  }).flat()
}

const domains = new Map<string, bigint>()

/** What the kernel does beside the product. */
interface Around {
  norm?: Float32Array
  bias?: Float32Array
  addTo?: Float32Array
  base?: Float32Array
  gated?: boolean
  /** Outputs of each part. */
  parts?: number[]
  /** A token's adapter: of some parts. */
  adapters?: (Adapter | undefined)[]
}

type Adapter = (Omit<KernelSegment, 'outOffset'> & { part: number })[]

const EPSILON = 1e-5

/** `tiled`: undefined where there is a base. */
function runKernel(
  set: InstructionSet,
  inputs: number,
  outs: number,
  tiled: Uint8Array | undefined,
  x: Float32Array,
  around: Around = {},
): Float32Array {
  const key = `${set.name} ${inputs}`
  const domain =
    domains.get(key) ?? createOpDomain(environment.library, [installLinearOp(environment.library, inputs, set)!])
  domains.set(key, domain)
  const tokens = x.length / inputs
  const { norm, bias, addTo, base, gated = false, parts, adapters } = around
  const shape = linearShapeWords({
    outputs: outs,
    epsilon: EPSILON,
    activation: gated ? 'silu' : 'none',
    ...(parts === undefined ? {} : { parts }),
    adapterOffset: 16,
  })
  const graph = new GraphWriter()
  const given: [string, OrtTensor][] = []
  const optional = (name: string, data: Float32Array | Uint8Array | BigInt64Array | undefined): string => {
    if (data === undefined) {
      return ''
    }
    const type = data instanceof Float32Array ? 'float32' : data instanceof Uint8Array ? 'uint8' : 'int64'
    given.push([name, new OrtTensor(environment, type, [data.length], data)])
    return graph.input(name, type, [data.length])
  }
  const sizes = BigInt64Array.from([tokens, tokens, 1], BigInt)
  const { rows, kept } = adapterRows(inputs, adapters)
  const names = [
    optional('x', x),
    graph.int64(shape),
    optional('sizes', sizes),
    optional('w', tiled),
    optional('norm', norm),
    optional('bias', bias),
    optional('addTo', addTo),
    optional('rows', rows),
    optional('base', base),
  ]
  const [y] = graph.nodes(linearOpType(inputs), names, { domain: OP_DOMAIN, outputs: 2 })
  const width = gated ? outs / 2 : outs
  graph.output('y', y!, 'float32', ['tokens', 1, width])
  const session = new OrtSession(environment, { model: graph.toModel(), customOps: [domain] })
  const binding = new OrtBinding(environment, session)
  const out = new Float32Array(tokens * width)
  for (const [name, tensor] of given) {
    binding.input(name, tensor)
  }
  binding.output('y', new OrtTensor(environment, 'float32', [tokens, 1, width], out))
  binding.run()
  binding.dispose()
  session.dispose()
  expect(kept).toBeDefined()
  return out
}

/** The input `rows`, and what its addresses point to. */
function adapterRows(inputs: number, adapters: (Adapter | undefined)[] | undefined) {
  if (adapters === undefined) {
    return { rows: undefined, kept: [] }
  }
  const kept: unknown[] = []
  const addresses = adapters.map((adapter) => {
    if (adapter === undefined || adapter.length === 0) {
      return 0n
    }
    const group = packTiled(
      inputs,
      adapter.map((segment) => ({ ...segment, outOffset: 0 })),
    )
    // Two words before the record: the offset in the shape must be honoured.
    const table = new BigInt64Array(2 + RECORD_WORDS)
    writeTiledRecord(table, 2, group)
    kept.push(group, table)
    return addressOf(table)
  })
  return { rows: BigInt64Array.of(0n, 0n, 0n, ...addresses), kept }
}

function floats(length: number, seed: number): Float32Array {
  let state = seed >>> 0
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 31 - 1
  })
}

describe.each(linearSets())('the int8 product with $name', (set) => {
  test('is that of a plain loop over the rounded numbers, for any shapes and numbers of tokens', () => {
    const shapes = fc.record({
      inputs: fc.constantFrom(32, 64, 96, 576),
      outs: fc.integer({ min: 1, max: 8 }).map((n) => 16 * n),
      tokens: fc.integer({ min: 1, max: 40 }),
      seed: fc.nat(),
      size: fc.constantFrom(1e-6, 1, 1e4),
    })
    fc.assert(
      fc.property(shapes, ({ inputs, outs, tokens, seed, size }) => {
        const { tiled, weight } = quantised(inputs, outs, floats(inputs * outs, seed))
        const x = floats(tokens * inputs, seed + 1).map((value) => value * size)
        const y = runKernel(set, inputs, outs, tiled, x)
        const right = slowProduct(x, weight, inputs, outs)
        for (let i = 0; i < y.length; i++) {
          // A half may round the other way in float32; a step of 127 then moves a product by at most 1 %.
          expect(Math.abs(y[i]! - right[i]!)).toBeLessThan(0.01 * size * Math.sqrt(inputs))
        }
      }),
      { numRuns: 40 },
    )
  })

  test('norms, biases, gates, sums and adapters are those of plain loops, for any of them together', () => {
    const cases = fc.record({
      inputs: fc.constantFrom(32, 96, 160),
      parts: fc.array(
        fc.integer({ min: 1, max: 3 }).map((n) => 16 * n),
        { minLength: 1, maxLength: 3 },
      ),
      ranks: fc.array(fc.array(fc.constantFrom(0, 1, 4, 7, 16, 40), { minLength: 3, maxLength: 3 }), {
        minLength: 1,
        maxLength: 19,
      }),
      norm: fc.boolean(),
      bias: fc.boolean(),
      addTo: fc.boolean(),
      gated: fc.boolean(),
      based: fc.boolean(),
      adapted: fc.boolean(),
      seed: fc.nat(),
    })
    fc.assert(
      fc.property(cases, ({ inputs, ranks, norm, bias, addTo, gated, based, adapted, seed, ...it }) => {
        const parts = gated ? [it.parts[0]!, it.parts[0]!] : it.parts
        const outs = parts.reduce((sum, n) => sum + n, 0)
        const tokens = ranks.length
        const width = gated ? outs / 2 : outs
        const { tiled, weight } = quantised(inputs, outs, floats(inputs * outs, seed))
        const x = floats(tokens * inputs, seed + 1)
        const adapters = ranks.map((row, token): Adapter | undefined =>
          token % 3 === 2
            ? undefined
            : parts.flatMap((n, part) => {
                const rank = row[part]!
                const loraA = floats(rank * inputs, seed + 10 * token + part)
                const loraB = floats(rank * n, seed + 10 * token + part + 5)
                return rank === 0 ? [] : [{ part, rank, outs: n, scaling: 0.5, loraA, loraB }]
              }),
        )
        const around: Around = {
          ...(norm ? { norm: floats(inputs, seed + 2) } : {}),
          ...(bias ? { bias: floats(outs, seed + 3) } : {}),
          ...(addTo ? { addTo: floats(tokens * width, seed + 4) } : {}),
          ...(based ? { base: floats(tokens * outs, seed + 6) } : {}),
          ...(adapted ? { adapters } : {}),
          gated,
          parts,
        }
        const mine = runKernel(set, inputs, outs, based ? undefined : tiled, x, around)
        const right = slowAround(inputs, outs, weight, x, around)
        for (const [i, { value, slope, largest }] of right.entries()) {
          expect(Math.abs(mine[i]! - value)).toBeLessThan(0.03 * slope * largest)
        }
        const token = tokens - 1
        const one = (array: Float32Array | undefined) => array?.slice((token * array.length) / tokens)
        const base = one(around.base)
        const sum = one(around.addTo)
        const alone = runKernel(set, inputs, outs, based ? undefined : tiled, one(x)!, {
          ...around,
          ...(base === undefined ? {} : { base }),
          ...(sum === undefined ? {} : { addTo: sum }),
          ...(adapted ? { adapters: adapters.slice(token) } : {}),
        })
        expect(alone).toEqual(mine.slice(token * width))
      }),
      { numRuns: 60 },
    )
  })

  test('a block of zeros, and a token of zeros, give zeros', () => {
    const { tiled, weight } = quantised(64, 32, floats(64 * 32, 3))
    const x = floats(3 * 64, 4)
    x.fill(0, 0, 32)
    x.fill(0, 128)
    const y = runKernel(set, 64, 32, tiled, x)
    expect(y.every(Number.isFinite)).toBe(true)
    expect([...y.slice(64)].every((value) => value === 0)).toBe(true)
    const right = slowProduct(x, weight, 64, 32)
    expect(Math.max(...y.map((value, i) => Math.abs(value - right[i]!)))).toBeLessThan(0.05)
  })

  test('a gate that is far from zero opens or closes, and is a number', () => {
    const gates = [-1e6, -200, -90, -1, 0, 1, 90, 200, 1e6]
    const base = new Float32Array(gates.length * 32).fill(3)
    for (const [token, gate] of gates.entries()) {
      base.fill(gate, token * 32, token * 32 + 16)
    }
    const y = runKernel(set, 32, 32, undefined, new Float32Array(gates.length * 32), { base, gated: true })
    for (const [token, gate] of gates.entries()) {
      const right = (3 * gate) / (1 + Math.exp(-gate))
      const row = y.slice(token * 16, token * 16 + 16)
      expect(Math.max(...row.map((value) => Math.abs(value - right)))).toBeLessThanOrEqual(
        1e-6 * Math.abs(right) + 1e-30,
      )
    }
  })

  test("a token's bits do not depend on its batch mates", () => {
    const { tiled } = quantised(96, 48, floats(96 * 48, 5))
    const x = floats(15 * 96, 6)
    const together = runKernel(set, 96, 48, tiled, x)
    for (let token = 0; token < 15; token++) {
      const alone = runKernel(set, 96, 48, tiled, x.slice(token * 96, (token + 1) * 96))
      expect(alone).toEqual(together.slice(token * 48, (token + 1) * 48))
    }
  })
})

test('shapes are whole blocks and tiles', () => {
  expect(fitsLinearKernel(64, 48)).toBe(true)
  expect(fitsLinearKernel(48, 48)).toBe(false)
  expect(fitsLinearKernel(64, 40)).toBe(false)
  expect(tiledBytes(64, 48)).toBe(3 * 2 * (512 + 64))
})

test('groups that the product cannot take are named', () => {
  expect(tiledObjection(48, [{ rank: 4, outs: 16 }])).toContain('48 inputs')
  expect(tiledObjection(64, [{ rank: 4, outs: 24 }])).toContain('tiles of 16')
  expect(
    tiledObjection(64, [
      { rank: 1022, outs: 16 },
      { rank: 1, outs: 16 },
    ]),
  ).toContain('1028 stacked ranks')
  expect(tiledObjection(64, [{ rank: 1024, outs: 16 }])).toBeUndefined()
})
