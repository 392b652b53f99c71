import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GraphWriter, MICROSOFT } from '../../../gpu-node/model/graph/graph-writer.ts'
import { allocateQuantised, dequantise, type QuantisedBits, quantiseRows } from '../../../gpu-node/model/quantise.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { OrtSession } from '../../../gpu-node/ort/session.ts'
import { OrtTensor } from '../../../gpu-node/ort/tensor.ts'
import { normals } from '../../support/normals.ts'

function quantise(values: Float32Array, rows: number, columns: number, bits: QuantisedBits) {
  const matrix = allocateQuantised(rows, columns, bits)
  quantiseRows(matrix, 0, values)
  return matrix
}

function relativeError(values: Float32Array, approximate: Float32Array): number {
  const squares = (list: Float32Array) => list.reduce((sum, x) => sum + x * x, 0)
  return Math.sqrt(squares(values.map((x, i) => x - approximate[i]!)) / squares(values))
}

describe('quantised matrices', () => {
  test.each<[QuantisedBits, number]>([
    [8, 0.006],
    [4, 0.079],
  ])('int%d keeps normal weights within its relative error', (bits, limit) => {
    const values = normals(64 * 256, 1)
    expect(relativeError(values, dequantise(quantise(values, 64, 256, bits)))).toBeLessThan(limit)
  })

  test('int8 is within half a step of every weight, whatever its block', () => {
    const weight = fc.oneof(
      fc.float({ noNaN: true, noDefaultInfinity: true, min: -(2 ** 100), max: 2 ** 100 }),
      fc.constant(0),
    )
    fc.assert(
      fc.property(fc.array(weight, { minLength: 1, maxLength: 70 }), (list) => {
        const values = Float32Array.from(list)
        const close = dequantise(quantise(values, 1, values.length, 8))
        for (const [i, value] of values.entries()) {
          const start = i - (i % 32)
          const step = Math.max(...values.subarray(start, start + 32).map(Math.abs)) / 127
          expect(Math.abs(value - close[i]!)).toBeLessThanOrEqual(step * 0.5001 + 2e-38)
        }
      }),
    )
  })

  test('int4 is never worse than the plain choice of range and zero point', () => {
    const block = fc.array(fc.float({ noNaN: true, min: -8, max: 8 }), { minLength: 32, maxLength: 32 })
    fc.assert(
      fc.property(block, (list) => {
        const values = Float32Array.from(list)
        const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)]
        const step = (high - low) / 15 || 1
        const zero = Math.round(-low / step)
        const plain = values.map((x) => (Math.max(0, Math.min(15, Math.round(x / step + zero))) - zero) * step)
        const ours = dequantise(quantise(values, 1, 32, 4))
        const error = (list: Float32Array) => list.reduce((sum, x, i) => sum + (x - values[i]!) ** 2, 0)
        expect(error(ours)).toBeLessThanOrEqual(error(plain) * 1.0001 + 1e-9)
      }),
    )
  })

  const anyFloat = fc.oneof(
    fc.float({ noDefaultInfinity: false }),
    fc.float({ min: -4, max: 4, noNaN: true }),
    fc.float({ min: -(2 ** -130), max: 2 ** -130, noNaN: true }),
    fc.constantFrom(0, -0, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 2 ** -149),
  )
  const kinds = fc.constantFrom(
    anyFloat,
    fc.float({ min: -4, max: 4, noNaN: true }),
    fc.float({ min: -(2 ** -140), max: 2 ** -140, noNaN: true }),
    fc.constant(0),
  )
  const anyRows = fc
    .tuple(kinds, fc.constantFrom(1, 8, 31, 32, 33, 64, 95))
    .chain(([number, columns]) =>
      fc
        .array(fc.array(number, { minLength: columns, maxLength: columns }), { minLength: 1, maxLength: 3 })
        .map((rows) => ({ columns, rows: rows.length, values: Float32Array.from(rows.flat()) })),
    )

  test.each<[QuantisedBits]>([[8], [4]])('int%d equals, bit for bit, what its definition says', (bits) => {
    fc.assert(
      fc.property(anyRows, ({ columns, rows, values }) => {
        const { weight, scales, zeroPoints } = quantise(values, rows, columns, bits)
        const plain = quantisePlainly(values, rows, columns, bits)
        expect({ weight: [...weight], scales: [...scales], zeros: [...(zeroPoints ?? [])] }).toEqual(plain)
      }),
      { numRuns: 300 },
    )
  })

  test('rows written in parts equal the whole', () => {
    const values = normals(6 * 40, 2)
    for (const bits of [4, 8] as const) {
      const parts = allocateQuantised(6, 40, bits)
      quantiseRows(parts, 0, values.subarray(0, 80))
      quantiseRows(parts, 2, values.subarray(80))
      expect(parts).toEqual(quantise(values, 6, 40, bits))
    }
    expect(() => quantiseRows(allocateQuantised(2, 40, 8), 1, values.subarray(0, 80))).toThrow(RangeError)
  })

  test.each<[QuantisedBits, number]>([
    [8, 64],
    [4, 64],
    [8, 40],
    [4, 40],
    [4, 96],
  ])('int%d with %d columns means to ONNX Runtime what it means to us', (bits, columns) => {
    const [rows, tokens] = [48, 3]
    const matrix = quantise(normals(rows * columns, 3), rows, columns, bits)
    const x = normals(tokens * columns, 4)
    const expected = multiply(x, dequantise(matrix), tokens, columns, rows)
    const actual = runMatMulNBits(x, matrix, tokens)
    for (const [i, value] of expected.entries()) {
      expect(actual[i]).toBeCloseTo(value, 3)
    }
  })
})

/** A number at a time. */
function quantisePlainly(values: Float32Array, rows: number, columns: number, bits: QuantisedBits) {
  const blocks = Math.ceil(columns / 32)
  const [weight, scales, zeros]: [number[], number[], number[]] = [[], [], []]
  for (let row = 0; row < rows; row++) {
    const zerosOfRow: number[] = []
    for (let block = 0; block < blocks; block++) {
      const list = [
        ...values.subarray(row * columns + block * 32, Math.min((row + 1) * columns, row * columns + block * 32 + 32)),
      ]
      if (bits === 8) {
        const scale = Math.fround(Math.max(0, ...list.map(Math.abs)) / 127)
        const inverse = scale === 0 ? 0 : 1 / scale
        const codes = list.map((value) => Math.trunc(value * inverse + 128.5) & 255)
        weight.push(...codes, ...Array(32 - list.length).fill(128))
        scales.push(scale)
      } else {
        const { codes, scale, zero } = blockOf4([...list, ...Array(32 - list.length).fill(0)])
        weight.push(...pairs(codes))
        scales.push(scale)
        zerosOfRow.push(zero)
      }
    }
    zeros.push(...pairs(zerosOfRow))
  }
  return { weight, scales, zeros }
}

function pairs(halves: number[]): number[] {
  return halves.flatMap((low, i) => (i % 2 === 0 ? [low | ((halves[i + 1] ?? 0) << 4)] : []))
}

function blockOf4(list: number[]): { codes: number[]; scale: number; zero: number } {
  const [low, high] = [Math.min(0, ...list), Math.max(0, ...list)]
  if (Math.fround((high - low) / 15) === 0) {
    return { codes: list.map(() => 8), scale: 0, zero: 8 }
  }
  if (!Number.isFinite(high - low)) {
    return { codes: list.map(() => 0), scale: 0, zero: 0 }
  }
  const zero = Math.round((-15 * low) / (high - low))
  const tried = [1, 0.95, 0.88].map((range) => {
    const inverse = 15 / (range * (high - low))
    const codes = list.map((value) => Math.max(0, Math.min(15, Math.trunc(value * inverse + zero + 0.5))))
    const wq = list.reduce((sum, value, i) => sum + value * (codes[i]! - zero), 0)
    const qq = codes.reduce((sum, code) => sum + (code - zero) ** 2, 0)
    return { codes, scale: Math.fround(wq / qq), gain: (wq * wq) / qq }
  })
  const { codes, scale } = tried.reduce((best, one) => (one.gain > best.gain ? one : best))
  return { codes, scale, zero: zero + 0 }
}

/** x `[tokens, columns]` · Wᵀ `[columns, rows]`. */
function multiply(x: Float32Array, weight: Float32Array, tokens: number, columns: number, rows: number): Float32Array {
  return Float32Array.from({ length: tokens * rows }, (_, i) => {
    const [token, row] = [Math.floor(i / rows), i % rows]
    let sum = 0
    for (let k = 0; k < columns; k++) {
      sum += x[token * columns + k]! * weight[row * columns + k]!
    }
    return sum
  })
}

function runMatMulNBits(x: Float32Array, matrix: ReturnType<typeof quantise>, tokens: number): Float32Array {
  const { rows, columns, bits, weight, scales, zeroPoints } = matrix
  const blocks = Math.ceil(columns / 32)
  const graph = new GraphWriter()
  const inputs = [
    graph.input('x', 'float32', [tokens, columns]),
    graph.weight('weight', 'uint8', [rows, blocks, 4 * bits]),
    graph.weight('scales', 'float32', [rows, blocks]),
  ]
  const zeroShape = [rows, Math.ceil(blocks / 2)]
  if (zeroPoints !== undefined) {
    inputs.push(graph.weight('zeros', 'uint8', zeroShape))
  }
  const attributes = { K: columns, N: rows, bits, block_size: 32, accuracy_level: 0 }
  const product = graph.node('MatMulNBits', inputs, { domain: MICROSOFT, attributes })
  graph.output('y', product, 'float32', [tokens, rows])
  const environment = new OrtEnvironment(1)
  const initializers = new Map([
    ['weight', new OrtTensor(environment, 'uint8', [rows, blocks, 4 * bits], weight)],
    ['scales', new OrtTensor(environment, 'float32', [rows, blocks], scales)],
  ])
  if (zeroPoints !== undefined) {
    initializers.set('zeros', new OrtTensor(environment, 'uint8', zeroShape, zeroPoints))
  }
  const session = new OrtSession(environment, { model: graph.toModel(), initializers })
  const binding = new OrtBinding(environment, session)
  const y = new Float32Array(tokens * rows)
  const feeds = [
    new OrtTensor(environment, 'float32', [tokens, columns], x),
    new OrtTensor(environment, 'float32', [tokens, rows], y),
  ] as const
  binding.input('x', feeds[0])
  binding.output('y', feeds[1])
  binding.run()
  binding.dispose()
  session.dispose()
  for (const tensor of [...feeds, ...initializers.values()]) {
    tensor.dispose()
  }
  environment.dispose()
  return y
}
