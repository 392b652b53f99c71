import { f16round } from '@petamoriken/float16'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { GraphWriter } from '../../../gpu-node/model/graph/graph-writer.ts'
import {
  type AttentionShape,
  fitsAttentionKernel,
  floatBits,
  shapeWords,
} from '../../../gpu-node/ort/attention-kernel/attention-layout.ts'
import {
  attentionOpType,
  attentionSets,
  installAttentionOp,
} from '../../../gpu-node/ort/attention-kernel/attention-op.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { createOpDomain, OP_DOMAIN } from '../../../gpu-node/ort/machine-code/custom-op.ts'
import type { InstructionSet } from '../../../gpu-node/ort/machine-code/instruction-sets.ts'
import { OrtSession } from '../../../gpu-node/ort/session.ts'
import { OrtTensor } from '../../../gpu-node/ort/tensor.ts'

const environment = new OrtEnvironment(2)
const ROWS = 3
const MAX_POSITIONS = 640

interface Model extends AttentionShape {
  kvHeads: number
  window: number
  softcap: number
}

interface Token {
  row: number
  position: number
}

const domains = new Map<string, bigint>()

/** The operator with a cache that stays from run to run; q, k and v lie in one tensor. */
class Kernel {
  readonly #model: Model
  readonly #binding: OrtBinding
  readonly #cos: Float32Array
  readonly #sin: Float32Array

  constructor(set: InstructionSet, model: Model, cos: Float32Array, sin: Float32Array) {
    this.#model = model
    this.#cos = cos
    this.#sin = sin
    const type = attentionOpType(model)
    const key = `${set.name} ${type}`
    const domain =
      domains.get(key) ?? createOpDomain(environment.library, [installAttentionOp(environment.library, model, set)!])
    domains.set(key, domain)
    const { kvHeads, group, headSize, rotaryHalf, window, softcap } = model
    const width = (group + 2) * kvHeads * headSize
    const cacheType = model.kv === 'f32' ? 'float32' : 'float16'
    const graph = new GraphWriter()
    const qkv = graph.input('qkv', 'float32', ['tokens', width])
    const cache = ['keys', 'values'].map((name) => graph.input(name, cacheType, ['elements']))
    const words = shapeWords({
      kvHeads,
      maxPositions: MAX_POSITIONS,
      window,
      queryStride: width * 4,
      keyStride: width * 4,
      valueStride: width * 4,
      keyOffset: group * kvHeads * headSize * 4,
      valueOffset: (group + 1) * kvHeads * headSize * 4,
      scale: floatBits(1 / Math.sqrt(headSize)),
      softcap: softcap === 0 ? 0 : floatBits(softcap),
    })
    const rest = [graph.input('list', 'int64', ['words']), graph.int64(words)]
    const tables = rotaryHalf === 0 ? [] : ['cos', 'sin'].map((name) => graph.input(name, 'float32', ['n', rotaryHalf]))
    const inputs = [qkv, qkv, qkv, ...cache, ...rest, ...tables]
    const out = graph.node(type, inputs, { domain: OP_DOMAIN })
    graph.output('out', out, 'float32', ['tokens', 1, group * kvHeads * headSize])
    const session = new OrtSession(environment, { model: graph.toModel(), customOps: [domain] })
    this.#binding = new OrtBinding(environment, session)
    const elements = ROWS * kvHeads * MAX_POSITIONS * headSize
    for (const name of ['keys', 'values']) {
      const data = model.kv === 'f32' ? new Float32Array(elements) : new Uint16Array(elements)
      this.#binding.input(name, new OrtTensor(environment, cacheType, [elements], data))
    }
    if (rotaryHalf > 0) {
      this.#binding.input('cos', new OrtTensor(environment, 'float32', [MAX_POSITIONS, rotaryHalf], this.#cos))
      this.#binding.input('sin', new OrtTensor(environment, 'float32', [MAX_POSITIONS, rotaryHalf], this.#sin))
    }
  }

  run(tokens: readonly Token[], qkv: Float32Array): Float32Array {
    const { kvHeads, group, headSize } = this.#model
    const count = tokens.length
    const list = [count, count, 1, ...tokens.flatMap(({ row, position }) => [row, position, position])]
    const out = new Float32Array(count * group * kvHeads * headSize)
    this.#binding.input('qkv', new OrtTensor(environment, 'float32', [count, qkv.length / count], qkv))
    this.#binding.input('list', new OrtTensor(environment, 'int64', [list.length], BigInt64Array.from(list, BigInt)))
    this.#binding.output('out', new OrtTensor(environment, 'float32', [count, 1, out.length / count], out))
    this.#binding.run()
    return out
  }
}

/** What the kernel must give: rotary embedding and softmax attention over a list of past keys and values, in float64. */
class SlowAttention {
  readonly #model: Model
  readonly #cos: Float32Array
  readonly #sin: Float32Array
  readonly #cache = new Map<string, { key: number[]; value: number[] }>()

  constructor(model: Model, cos: Float32Array, sin: Float32Array) {
    this.#model = model
    this.#cos = cos
    this.#sin = sin
  }

  run(tokens: readonly Token[], qkv: Float32Array): number[] {
    const { kvHeads, group, headSize, kv, window, softcap } = this.#model
    const width = (group + 2) * kvHeads * headSize
    const part = (token: number, head: number) => [
      ...qkv.subarray(token * width + head * headSize, token * width + (head + 1) * headSize),
    ]
    const kept = (value: number) => (kv === 'f32' ? value : f16round(value))
    for (const [t, { row, position }] of tokens.entries()) {
      for (let head = 0; head < kvHeads; head++) {
        const key = this.#rotate(part(t, group * kvHeads + head), position).map(kept)
        const value = part(t, (group + 1) * kvHeads + head).map(kept)
        this.#cache.set(`${row}/${head}/${position}`, { key, value })
      }
    }
    return tokens.flatMap(({ row, position }, t) =>
      Array.from({ length: group * kvHeads }, (_, head) => {
        const query = this.#rotate(part(t, head), position)
        const first = window === 0 ? 0 : Math.max(0, position + 1 - window)
        const past = Array.from(
          { length: position + 1 - first },
          (_, i) => this.#cache.get(`${row}/${Math.floor(head / group)}/${first + i}`)!,
        )
        const scores = past.map(({ key }) => {
          const score = key.reduce((sum, value, i) => sum + value * query[i]!, 0) / Math.sqrt(headSize)
          return softcap === 0 ? score : softcap * Math.tanh(score / softcap)
        })
        const largest = Math.max(...scores)
        const powers = scores.map((score) => Math.exp(score - largest))
        const total = powers.reduce((a, b) => a + b, 0)
        return query.map((_, i) => past.reduce((sum, { value }, p) => sum + (powers[p]! / total) * value[i]!, 0))
      }).flat(),
    )
  }

  #rotate(head: number[], position: number): number[] {
    const half = this.#model.rotaryHalf
    const rotated = [...head]
    for (let i = 0; i < half; i++) {
      const c = this.#cos[position * half + i]!
      const s = this.#sin[position * half + i]!
      rotated[i] = head[i]! * c - head[i + half]! * s
      rotated[i + half] = head[i + half]! * c + head[i]! * s
    }
    return rotated
  }
}

function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 31 - 1
  }
}

const HEAD_SIZES = [16, 32, 64, 80, 96, 128, 256]
const GROUPS = [1, 2, 3, 7, 8, 16]

const models = fc
  .record({
    headSize: fc.constantFrom(...HEAD_SIZES),
    group: fc.constantFrom(...GROUPS),
    rotary: fc.constantFrom('none', 'part', 'whole'),
    kvHeads: fc.constantFrom(1, 2, 3),
    kv: fc.constantFrom('f32' as const, 'f16' as const),
    window: fc.constantFrom(0, 1, 7, 16, 40),
    softcap: fc.constantFrom(0, 0, 2),
  })
  .map(({ rotary, ...model }): Model => {
    const half = rotary === 'part' ? 16 : Math.floor(model.headSize / 32) * 16
    return { ...model, rotaryHalf: rotary === 'none' || model.headSize < 32 ? 0 : half }
  })

/** The kernel, and its slow version beside it, whose results it must have. */
class Checked {
  readonly kernel: Kernel
  readonly #model: Model
  readonly #slow: SlowAttention
  readonly #next: () => number

  constructor(set: InstructionSet, model: Model, seed: number) {
    const angles = Float32Array.from({ length: MAX_POSITIONS * Math.max(1, model.rotaryHalf) }, (_, i) => {
      const half = Math.max(1, model.rotaryHalf)
      return Math.floor(i / half) / 100 ** ((i % half) / half)
    })
    const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)]
    this.#model = model
    this.kernel = new Kernel(set, model, cos, sin)
    this.#slow = new SlowAttention(model, cos, sin)
    this.#next = random(seed)
  }

  qkv(tokens: number, size: number): Float32Array {
    const { group, kvHeads, headSize } = this.#model
    return Float32Array.from({ length: tokens * (group + 2) * kvHeads * headSize }, () => size * this.#next())
  }

  run(tokens: Token[], { size = 2, within = this.#model.kv === 'f32' ? 2e-5 : 4e-3 } = {}): void {
    const qkv = this.qkv(tokens.length, size)
    const mine = this.kernel.run(tokens, qkv)
    const right = this.#slow.run(tokens, qkv)
    const worst = right.reduce((largest, value, i) => Math.max(largest, Math.abs(value - mine[i]!)), 0)
    expect(mine.every(Number.isFinite)).toBe(true)
    expect(worst).toBeLessThan(within)
  }
}

function chunk(row: number, start: number, length: number): Token[] {
  return Array.from({ length }, (_, i) => ({ row, position: start + i }))
}

describe.each(attentionSets())('the attention kernel with $name', (set) => {
  test('is attention, for any shapes, prefill chunks and decode batches', () => {
    const prompts = fc.array(fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 3 }), {
      minLength: 1,
      maxLength: ROWS,
    })
    fc.assert(
      fc.property(models, prompts, fc.nat(), (model, rows, seed) => {
        const checked = new Checked(set, model, seed)
        const filled = rows.map((chunks, row) => {
          let start = 0
          for (const length of chunks) {
            checked.run(chunk(row, start, length))
            start += length
          }
          return start
        })
        for (let step = 0; step < 2; step++) {
          checked.run(filled.map((start, row) => ({ row, position: start + step })))
        }
      }),
      { numRuns: 40 },
    )
  })

  test.each(HEAD_SIZES)('has registers for heads of %i in groups of any size', (headSize) => {
    const rotaryHalf = headSize % 32 === 0 ? headSize / 2 : 0
    for (const [i, group] of [...GROUPS, 5, 6, 9].entries()) {
      for (const kv of ['f32', 'f16'] as const) {
        const [window, softcap] = [[0, 7, 20][i % 3]!, i % 2 === 0 ? 0 : 2]
        const checked = new Checked(set, { headSize, group, rotaryHalf, kvHeads: 1, kv, window, softcap }, i)
        checked.run(chunk(1, 0, 18))
        checked.run(chunk(1, 18, 15))
        checked.run(chunk(1, 33, 1))
      }
    }
  })

  test.each([0, 300])('holds over many blocks of scores, with a window of %i (0: none)', (window) => {
    const checked = new Checked(
      set,
      { headSize: 64, group: 3, rotaryHalf: 32, kvHeads: 1, kv: 'f32', window, softcap: 0 },
      window,
    )
    for (let start = 0; start < 600; start += 60) {
      checked.run(chunk(2, start, 60), { size: 3, within: 5e-5 })
    }
  })

  test.each(['f32', 'f16'] as const)('gives a token the same bits alone and among others (%s)', (kv) => {
    const model: Model = { headSize: 64, group: 3, rotaryHalf: 32, kvHeads: 2, kv, window: 0, softcap: 0 }
    const checked = new Checked(set, model, 9)
    const width = 5 * 2 * 64
    for (const row of [0, 1, 2]) {
      checked.run(chunk(row, 0, [40, 300, 17][row]!))
    }
    const tokens = [...chunk(0, 40, 20), { row: 1, position: 300 }, { row: 2, position: 17 }]
    const qkv = checked.qkv(tokens.length, 2)
    const all = checked.kernel.run(tokens, qkv)
    for (const [i, token] of tokens.entries()) {
      const alone = checked.kernel.run([token], qkv.slice(i * width, (i + 1) * width))
      expect(alone).toEqual(all.slice(i * alone.length, (i + 1) * alone.length))
    }
  })

  test.each([NaN, Infinity])("a row's earlier sequence leaves nothing to the next one, %s included", (left) => {
    for (const kv of ['f32', 'f16'] as const) {
      const model: Model = { headSize: 32, group: 2, rotaryHalf: 16, kvHeads: 1, kv, window: 7, softcap: 0 }
      const checked = new Checked(set, model, 8)
      checked.kernel.run(chunk(1, 0, 40), checked.qkv(40, 1).fill(left))
      checked.run(chunk(1, 0, 5))
      for (let position = 5; position < 36; position++) {
        checked.run([{ row: 1, position }])
      }
    }
  })

  test('scores far apart leave only the largest', () => {
    const model: Model = { headSize: 32, group: 2, rotaryHalf: 16, kvHeads: 1, kv: 'f32', window: 7, softcap: 0 }
    const checked = new Checked(set, model, 5)
    for (let start = 0; start < 60; start += 20) {
      checked.run(chunk(0, start, 20), { size: 100, within: 1e-2 })
    }
  })
})

test('heads that are not whole vectors are left to others', () => {
  expect(fitsAttentionKernel({ headSize: 64, group: 3, rotaryHalf: 32 })).toBe(true)
  expect(fitsAttentionKernel({ headSize: 24, group: 3, rotaryHalf: 0 })).toBe(false)
  expect(fitsAttentionKernel({ headSize: 32, group: 3, rotaryHalf: 8 })).toBe(false)
  expect(fitsAttentionKernel({ headSize: 128, group: 128, rotaryHalf: 64 })).toBe(false)
})
