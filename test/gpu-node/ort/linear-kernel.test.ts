import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GraphWriter } from '../../../gpu-node/model/graph/graph-writer.ts'
import { allocateQuantised, dequantise, quantiseRows } from '../../../gpu-node/model/quantise.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { fitsLinearKernel, tiledBytes, tileMatrix } from '../../../gpu-node/ort/linear-kernel/linear-layout.ts'
import { canRunLinearKernel, installLinearOp, linearOpType } from '../../../gpu-node/ort/linear-kernel/linear-op.ts'
import { createOpDomain, OP_DOMAIN } from '../../../gpu-node/ort/machine-code/custom-op.ts'
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

const domains = new Map<number, bigint>()

function runKernel(inputs: number, outs: number, tiled: Uint8Array, x: Float32Array): Float32Array {
  const domain =
    domains.get(inputs) ?? createOpDomain(environment.library, [installLinearOp(environment.library, inputs)!])
  domains.set(inputs, domain)
  const tokens = x.length / inputs
  const graph = new GraphWriter()
  const names = [
    graph.input('x', 'float32', ['tokens', inputs]),
    graph.input('w', 'uint8', [tiled.length]),
    graph.input('shape', 'int64', [2]),
    graph.input('sizes', 'int64', [3]),
  ]
  const [y] = graph.nodes(linearOpType(inputs), names, { domain: OP_DOMAIN, outputs: 2 })
  graph.output('y', y!, 'float32', ['tokens', 1, outs])
  const session = new OrtSession(environment, { model: graph.toModel(), customOps: [domain] })
  const binding = new OrtBinding(environment, session)
  const out = new Float32Array(tokens * outs)
  const int64 = (...values: number[]) => BigInt64Array.from(values, BigInt)
  binding.input('x', new OrtTensor(environment, 'float32', [tokens, inputs], x))
  binding.input('w', new OrtTensor(environment, 'uint8', [tiled.length], tiled))
  binding.input('shape', new OrtTensor(environment, 'int64', [2], int64(inputs, outs)))
  binding.input('sizes', new OrtTensor(environment, 'int64', [3], int64(tokens, tokens, 1)))
  binding.output('y', new OrtTensor(environment, 'float32', [tokens, 1, outs], out))
  binding.run()
  binding.dispose()
  session.dispose()
  return out
}

function floats(length: number, seed: number): Float32Array {
  let state = seed >>> 0
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 31 - 1
  })
}

describe.runIf(canRunLinearKernel())('the int8 product', () => {
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
        const y = runKernel(inputs, outs, tiled, x)
        const right = slowProduct(x, weight, inputs, outs)
        for (let i = 0; i < y.length; i++) {
          // A half may round the other way in float32; a step of 127 then moves a product by at most 1 %.
          expect(Math.abs(y[i]! - right[i]!)).toBeLessThan(0.01 * size * Math.sqrt(inputs))
        }
      }),
      { numRuns: 40 },
    )
  })

  test('a block of zeros, and a token of zeros, give zeros', () => {
    const { tiled, weight } = quantised(64, 32, floats(64 * 32, 3))
    const x = floats(3 * 64, 4)
    x.fill(0, 0, 32)
    x.fill(0, 128)
    const y = runKernel(64, 32, tiled, x)
    expect(y.every(Number.isFinite)).toBe(true)
    expect([...y.slice(64)].every((value) => value === 0)).toBe(true)
    const right = slowProduct(x, weight, 64, 32)
    expect(Math.max(...y.map((value, i) => Math.abs(value - right[i]!)))).toBeLessThan(0.05)
  })

  test("a token's bits do not depend on its batch mates", () => {
    const { tiled } = quantised(96, 48, floats(96 * 48, 5))
    const x = floats(15 * 96, 6)
    const together = runKernel(96, 48, tiled, x)
    for (let token = 0; token < 15; token++) {
      const alone = runKernel(96, 48, tiled, x.slice(token * 96, (token + 1) * 96))
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
