/** Draws from shortlists are the whole row's: any logits, any parameters, any mix of rows. */

import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import type { SamplingParams } from '../../../gpu-node/engine/engine-types.ts'
import { RowSampler } from '../../../gpu-node/engine/sampling/row-sampler.ts'
import { type Draw, type DrawContext, Sampler } from '../../../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../../../gpu-node/engine/sampling/score-changes.ts'
import { DeviceContext } from '../../../gpu-node/model/device/device-context.ts'
import { DeviceLogits } from '../../../gpu-node/model/device/device-logits.ts'
import { OutputRows } from '../../../gpu-node/model/device/device-outputs.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'

const ROWS = 4
const environment = new OrtEnvironment(1)
const device = new DeviceContext(environment, { kind: 'cpu' })

function world(vocabSize: number) {
  const rows = new OutputRows(device, ROWS, vocabSize)
  const fetch = (first: number, count: number) => rows.fetch(count, first)
  const own = { has: () => false, logits: () => new Float32Array(0) }
  const logits = { address: rows.address, rows: ROWS, vocabSize, fetch }
  const kept = new DeviceLogits(device, logits, { maxRows: ROWS, graphs: false, own })
  afterAll(() => {
    kept.dispose()
    rows.dispose()
  })
  return {
    vocabSize,
    kept,
    put: (values: Float32Array) => device.upload(values, rows.address),
    whole: new Sampler(vocabSize),
    short: new RowSampler(vocabSize, kept),
  }
}
type World = ReturnType<typeof world>

/** In groups of 256 with and without a rest, more than one round of them, and shorter than one list. */
const worlds = [40, 45, 300, 2048, 2053, 20_000].map(world)

const params: fc.Arbitrary<SamplingParams> = fc.record(
  {
    temperature: fc.constantFrom(0, 0.01, 0.3, 0.7, 1, 1.5, 4),
    doSample: fc.boolean(),
    topK: fc.constantFrom(undefined, 1, 5, 40, 64, 90),
    topP: fc.constantFrom(undefined, 0.05, 0.5, 0.9, 0.999, 1),
    minP: fc.constantFrom(undefined, 0.05, 0.3),
    typicalP: fc.constantFrom(undefined, 0.7),
    repetitionPenalty: fc.constantFrom(undefined, 0.7, 1.3),
    frequencyPenalty: fc.constantFrom(undefined, 0.4, -0.3),
    presencePenalty: fc.constantFrom(undefined, 1.1),
    logitBias: fc.option(fc.array(fc.tuple(fc.nat(39), fc.constantFrom(-100, -1.3, 0.1, 7, 100)), { maxLength: 6 }), {
      nil: undefined,
    }),
    seed: fc.nat(),
    watermark: fc.constantFrom(undefined, undefined, undefined, true),
    alternatives: fc.constantFrom(0, 0, 3, 20),
  },
  { requiredKeys: ['temperature', 'doSample', 'seed', 'alternatives'] },
)
interface Row {
  params: SamplingParams
  prompt: number[]
  generated: number[]
  spread: number
  step: number
  noise: number
  mask: number | undefined
  wild: string
}

const row: fc.Arbitrary<Row> = fc.record({
  params,
  prompt: fc.array(fc.nat(39), { maxLength: 30 }),
  generated: fc.array(fc.nat(39), { maxLength: 30 }),
  /** Of the logits: ties come from steps, peaks from the spread. */
  spread: fc.constantFrom(0.3, 2, 8),
  step: fc.constantFrom(0, 0.5),
  noise: fc.nat(),
  /** Every how manieth token is allowed. */
  mask: fc.constantFrom(undefined, undefined, 1, 3, 50),
  wild: fc.constantFrom('', '', '', '', 'nan', 'infinite', 'impossible'),
})
function logitsOf({ spread, step, noise, wild }: Row, vocabSize: number): Float32Array {
  let state = noise >>> 0
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  const values = Float32Array.from({ length: vocabSize }, () => {
    const normal = Math.sqrt(-2 * Math.log(next() + 1e-9)) * Math.cos(2 * Math.PI * next())
    return step === 0 ? spread * normal : Math.round((spread * normal) / step) * step
  })
  const at = noise % vocabSize
  values[at] = wild === 'nan' ? Number.NaN : wild === 'infinite' ? Number.POSITIVE_INFINITY : values[at]!
  return wild === 'impossible' ? values.map((value, i) => (i % 7 === 0 ? value : Number.NEGATIVE_INFINITY)) : values
}

function maskOf(every: number | undefined, vocabSize: number): Int32Array | undefined {
  if (every === undefined) {
    return undefined
  }
  const mask = new Int32Array(Math.ceil(vocabSize / 32))
  for (let token = 0; token < vocabSize; token += every) {
    mask[token >> 5]! |= 1 << (token & 31)
  }
  return mask
}

function contextOf({ params, prompt, generated, mask }: Row, vocabSize: number): DrawContext {
  const history = new TokenHistory(params, Int32Array.from(prompt), new Int32Array(0))
  // Asked for early, so that what follows changes it.
  history.changes
  for (const token of generated) {
    history.add(token)
  }
  return {
    params,
    history,
    previousToken: generated.at(-1) ?? prompt.at(-1) ?? 0,
    draw: generated.length,
    mask: maskOf(mask, vocabSize),
  }
}

function drawBoth({ vocabSize, put, whole, short }: World, rows: readonly Row[]): [whole: Draw[], short: Draw[]] {
  const logits = new Float32Array(ROWS * vocabSize)
  for (const [i, it] of rows.entries()) {
    logits.set(logitsOf(it, vocabSize), i * vocabSize)
  }
  put(logits)
  const contexts = rows.map((it) => contextOf(it, vocabSize))
  const wanted = contexts.map((context, i) =>
    whole.sample(logits.subarray(i * vocabSize, (i + 1) * vocabSize), context),
  )
  return [wanted, short.draw(undefined, contexts.map((context, i) => ({ row: i, context })).reverse()).reverse()]
}

function expectSame(wanted: Draw, drawn: Draw): void {
  expect(drawn.kind).toBe(wanted.kind)
  if (wanted.kind !== 'token' || drawn.kind !== 'token') {
    return
  }
  expect(drawn.token.tokenId).toBe(wanted.token.tokenId)
  expect(drawn.token.logprob).toBeCloseTo(wanted.token.logprob, 4)
  expect(drawn.token.alternatives?.map(({ tokenId }) => tokenId)).toEqual(
    wanted.token.alternatives?.map(({ tokenId }) => tokenId),
  )
  for (const [i, { logprob }] of wanted.token.alternatives?.entries() ?? []) {
    expect(drawn.token.alternatives![i]!.logprob).toBeCloseTo(logprob, 4)
  }
}

describe.each(worlds)('of a vocabulary of $vocabSize', (it) => {
  test('tokens, log-probabilities and alternatives are those of the whole row', () => {
    fc.assert(
      fc.property(fc.array(row, { minLength: 1, maxLength: ROWS }), (rows) => {
        const [wanted, drawn] = drawBoth(it, rows)
        for (const [i, draw] of wanted.entries()) {
          expectSame(draw, drawn[i]!)
        }
      }),
      { numRuns: it.vocabSize > 10_000 ? 60 : 250 },
    )
  })
})

describe('whole rows come down', () => {
  const it = worlds.at(-1)!
  const plain: Row = {
    params: { temperature: 0.8, doSample: true, seed: 5, alternatives: 0 },
    prompt: [1, 2, 3],
    generated: [4],
    spread: 4,
    step: 0,
    noise: 3,
    mask: undefined,
    wild: '',
  }
  const rowsFor = (changes: Partial<SamplingParams>, others: Partial<Row> = {}): number => {
    const before = it.short.wholeRows
    for (let noise = 0; noise < 25; noise++) {
      const rows = Array.from({ length: ROWS }, (_, i) => ({
        ...plain,
        ...others,
        noise: 100 * i + noise,
        params: { ...plain.params, ...changes, seed: noise },
      }))
      const [wanted, drawn] = drawBoth(it, rows)
      for (const [i, draw] of wanted.entries()) {
        expectSame(draw, drawn[i]!)
      }
    }
    return it.short.wholeRows - before
  }

  test.each([
    ['greedy', { doSample: false }],
    ['greedy with penalties', { doSample: false, repetitionPenalty: 1.2, frequencyPenalty: 0.5 }],
    ['top_k', { topK: 40, topP: 0.9 }],
    ['min_p', { minP: 0.1 }],
    ['alternatives', { doSample: false, alternatives: 5 }],
  ] as const)('for no draw: %s', (_, changes) => expect(rowsFor(changes)).toBe(0))

  test('for few: plain temperature, top_p', () => {
    expect(rowsFor({})).toBeLessThanOrEqual(10)
    expect(rowsFor({ topP: 0.5 })).toBeLessThanOrEqual(10)
  })

  test('under a grammar’s mask for none', () => expect(rowsFor({ topK: 20 }, { mask: 3 })).toBe(0))

  test('for all with the watermark', () => expect(rowsFor({ watermark: true })).toBe(100))
})
