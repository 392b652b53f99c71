import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GraphWriter } from '../../../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { loadOrtLibrary } from '../../../gpu-node/ort/library.ts'
import {
  type KernelSegment,
  type KernelWeights,
  kernelObjection,
  packGroup,
} from '../../../gpu-node/ort/lora-kernel/kernel-layout.ts'
import {
  addressOf,
  canRunLoraKernel,
  groupRecordBytes,
  installLoraOp,
  LORA_OP,
  writeGroupRecord,
} from '../../../gpu-node/ort/lora-kernel/lora-op.ts'
import { createOpDomain } from '../../../gpu-node/ort/machine-code/custom-op.ts'
import { OrtSession } from '../../../gpu-node/ort/session.ts'
import { OrtTensor } from '../../../gpu-node/ort/tensor.ts'

const environment = new OrtEnvironment(2)
const library = loadOrtLibrary()

interface Adapter {
  segments: KernelSegment[]
}

/** What the kernel must give: a plain loop in float64. */
function slowDelta(x: Float32Array, base: Float32Array, inputs: number, adapter: Adapter | undefined): Float64Array {
  const out = Float64Array.from(base)
  for (const { rank, loraA, loraB, scaling, outOffset, outs } of adapter?.segments ?? []) {
    for (let r = 0; r < rank; r++) {
      let projected = 0
      for (let k = 0; k < inputs; k++) {
        projected += x[k]! * loraA[r * inputs + k]!
      }
      for (let o = 0; o < outs; o++) {
        out[outOffset + o]! += projected * scaling * loraB[o * rank + r]!
      }
    }
  }
  return out
}

function runKernel(
  weights: KernelWeights,
  inputs: number,
  outs: number,
  x: Float32Array,
  base: Float32Array,
  adapters: (Adapter | undefined)[],
) {
  const domain = createOpDomain(library, [installLoraOp(library, weights)!])
  const rows = adapters.length
  const graph = new GraphWriter()
  const names = [
    graph.input('base', 'float32', ['rows', 1, outs]),
    graph.input('x', 'float32', ['rows', 1, inputs]),
    graph.input('rows', 'int64', ['rows plus 3']),
    graph.input('shape', 'int64', [3]),
  ]
  graph.output('out', graph.node(LORA_OP.type, names, { domain: LORA_OP.domain }), 'float32', ['rows', 1, outs])
  const session = new OrtSession(environment, { model: graph.toModel(), customOps: [domain] })
  const kept: unknown[] = []
  const table = new BigInt64Array(rows + 3)
  table.set([BigInt(rows), BigInt(rows), 1n])
  for (const [index, adapter] of adapters.entries()) {
    if (adapter !== undefined) {
      const group = packGroup(inputs, adapter.segments, weights)
      // Two zero words before the record: the offset in the shape input must be honoured.
      const record = new BigInt64Array(2 + groupRecordBytes(adapter.segments.length) / 8)
      writeGroupRecord(record, 2, group)
      table[index + 3] = addressOf(record)
      kept.push(group, record)
    }
  }
  const out = new Float32Array(rows * outs)
  const binding = new OrtBinding(environment, session)
  binding.input('base', new OrtTensor(environment, 'float32', [rows, 1, outs], base))
  binding.input('x', new OrtTensor(environment, 'float32', [rows, 1, inputs], x))
  binding.input('rows', new OrtTensor(environment, 'int64', [rows + 3], table))
  binding.input('shape', new OrtTensor(environment, 'int64', [3], BigInt64Array.of(BigInt(inputs), BigInt(outs), 16n)))
  binding.output('out', new OrtTensor(environment, 'float32', [rows, 1, outs], out))
  binding.run()
  binding.dispose()
  session.dispose()
  expect(kept).toBeDefined()
  return out
}

const floats = (length: number, next: () => number) => Float32Array.from({ length }, () => next() * 2 - 1)

/** A small seeded generator: the property's cases must be repeatable. */
function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

const shapes = fc.record({
  inputs: fc.integer({ min: 1, max: 40 }).map((n) => 4 * n),
  outs: fc.array(
    fc.integer({ min: 1, max: 24 }).map((n) => 8 * n),
    { minLength: 1, maxLength: 3 },
  ),
  ranks: fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 5 }),
  seed: fc.nat(),
})

describe.runIf(canRunLoraKernel())('the LoRA kernel', () => {
  for (const [weights, tolerance] of [
    ['f32', 2e-5],
    ['int8', 0.02],
  ] as const) {
    test(`gives each row its own adapter's delta, in ${weights}, for any shapes and ranks`, () => {
      fc.assert(
        fc.property(shapes, ({ inputs, outs, ranks, seed }) => {
          const next = random(seed)
          const width = outs.reduce((sum, n) => sum + n, 0)
          const adapters = ranks.map((rank, row): Adapter | undefined => {
            let outOffset = 0
            const segments = outs.map((n, i): KernelSegment => {
              const own = Math.max(1, rank - i)
              const place = outOffset
              outOffset += n
              return {
                rank: own,
                loraA: floats(own * inputs, next),
                loraB: floats(n * own, next),
                scaling: 0.5,
                outOffset: place,
                outs: n,
              }
            })
            // Some rows run on the base, some adapt only the last projection.
            return row % 3 === 1 ? undefined : { segments: row % 3 === 2 ? segments.slice(-1) : segments }
          })
          const x = floats(adapters.length * inputs, next)
          const base = floats(adapters.length * width, next)
          const out = runKernel(weights, inputs, width, x, base, adapters)
          for (const [row, adapter] of adapters.entries()) {
            const mine = base.subarray(row * width, (row + 1) * width)
            const right = slowDelta(x.subarray(row * inputs, (row + 1) * inputs), mine, inputs, adapter)
            const scale = Math.max(1, ...right.map(Math.abs))
            for (let o = 0; o < width; o++) {
              expect(Math.abs(out[row * width + o]! - right[o]!)).toBeLessThan(tolerance * scale)
            }
          }
        }),
        { numRuns: 60 },
      )
    })
  }

  test("a row's bits do not depend on its batch mates", () => {
    const next = random(7)
    const adapter = (): Adapter => ({
      segments: [
        { rank: 16, loraA: floats(16 * 64, next), loraB: floats(72 * 16, next), scaling: 2, outOffset: 0, outs: 72 },
      ],
    })
    const adapters = [adapter(), adapter(), undefined, adapter()]
    const x = floats(4 * 64, next)
    const base = floats(4 * 72, next)
    const together = runKernel('f32', 64, 72, x, base, adapters)
    for (const [row, own] of adapters.entries()) {
      const alone = runKernel('f32', 64, 72, x.slice(row * 64, (row + 1) * 64), base.slice(row * 72, (row + 1) * 72), [
        own,
      ])
      expect(alone).toEqual(together.slice(row * 72, (row + 1) * 72))
    }
  })
})

test('shapes that the kernel cannot take are named', () => {
  expect(kernelObjection(6, [{ rank: 4, outs: 8 }])).toContain('6 inputs')
  expect(kernelObjection(8, [{ rank: 4, outs: 12 }])).toContain('multiple of 8')
  expect(kernelObjection(8, [{ rank: 1025, outs: 8 }])).toContain('1025 stacked ranks')
  expect(kernelObjection(8, [{ rank: 4, outs: 8 }])).toBeUndefined()
})
