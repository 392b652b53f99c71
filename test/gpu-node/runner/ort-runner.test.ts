import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { randomBase } from '../../../bench/random-base.ts'
import { packAdapter } from '../../../gpu-node/model/pack-adapter.ts'
import type { LoraAdapter } from '../../../gpu-node/model/packed-adapter.ts'
import { createOrtRunner, type OrtRunner } from '../../../gpu-node/model/runner/ort-runner.ts'
import { canRunLoraKernel } from '../../../gpu-node/ort/lora-kernel/lora-op.ts'
import { RingletError } from '../../../shared/errors.ts'
import { TINY_SHAPE, tinyAdapter, tinyBase } from '../../support/tiny-base.ts'

const base = tinyBase()
const ROWS = 5
const RANKS = [1, 4, 16, 40, 256]

async function openRunner(kernels: boolean, dtype: 'f32' | 'int8' = 'f32', checkpoint = base): Promise<OrtRunner> {
  const runner = await createOrtRunner({
    checkpoint,
    dtype,
    threads: 2,
    maxRows: ROWS,
    maxPositions: TINY_SHAPE.positions,
    adapterSlots: RANKS.length + 1,
    kernels,
  })
  for (const [slot, adapter] of adapters().entries()) {
    runner.loadAdapter(slot, await packAdapter(adapter, checkpoint, runner.adapterLayout))
  }
  return runner
}

/** All ranks; the second adapts attention alone, the last has DoRA magnitudes and biases too. */
function adapters(): LoraAdapter[] {
  return RANKS.map((rank, i) => {
    const adapter = tinyAdapter(base, rank, 100 + i)
    if (i === 1) {
      return { ...adapter, modules: adapter.modules.filter(({ name }) => name.includes('self_attn')) }
    }
    if (i < RANKS.length - 1) {
      return adapter
    }
    const modules = adapter.modules.map((module, m) => {
      const outs = module.loraB.length / module.rank
      const vector = Float32Array.from({ length: outs }, (_, n) => 1 + Math.sin(n + m) / 4)
      return m % 2 === 0 ? { ...module, magnitude: vector } : { ...module, loraBias: vector.map((v) => (v - 1) / 8) }
    })
    return { ...adapter, modules }
  })
}

interface Sequence {
  adapterSlot: number | undefined
  prompt: number[]
  /** Fed one a step after the prompt. */
  next: number[]
}

const sequence = fc.record({
  adapterSlot: fc.option(fc.nat(RANKS.length - 1), { nil: undefined }),
  prompt: fc.array(fc.nat(TINY_SHAPE.vocab - 1), { minLength: 1, maxLength: 20 }),
  next: fc.array(fc.nat(TINY_SHAPE.vocab - 1), { minLength: 3, maxLength: 3 }),
})

/** Logits after each token of `next`, the sequence alone in row 0, its prompt in one piece. */
function alone(runner: OrtRunner, { adapterSlot, prompt, next }: Sequence): Float32Array[] {
  const tokens = Int32Array.from(prompt)
  runner.prefill({ kvRow: 0, tokens, startPosition: 0, adapterSlot, logits: 'none' })
  return next.map((token, i) =>
    runner
      .decode({
        tokens: Int32Array.of(token),
        positions: Int32Array.of(prompt.length + i),
        adapterSlots: [adapterSlot],
      })
      .slice(),
  )
}

const DORA_SLOT = RANKS.length - 1
/** Adapters with extras by row have runs of their own. */
const sharing = (adapterSlot: number | undefined) => (adapterSlot === DORA_SLOT ? 0 : adapterSlot)

function expectClose(mine: Float32Array, right: Float32Array, tolerance = 1e-4): void {
  expect(mine.length).toBe(right.length)
  let worst = 0
  for (let i = 0; i < right.length; i++) {
    const difference = Math.abs(mine[i]! - right[i]!)
    worst = difference <= worst ? worst : difference
  }
  expect(worst).toBeLessThan(tolerance)
}

const kinds = canRunLoraKernel() ? [true, false] : [false]
describe.each(kinds)('the runner, our own kernels %s', async (kernels) => {
  const runner = await openRunner(kernels)
  afterAll(() => runner.dispose())

  /** Only where the runner can: our own attention kernel. */
  const testMixed = (name: string, run: () => void) => (runner.mixed === undefined ? undefined : test(name, run))

  test('a batch of different adapters gives each row what it gets alone, whatever the chunks of its prompt', () => {
    const batches = fc.array(fc.tuple(sequence, fc.integer({ min: 1, max: 7 })), { minLength: 1, maxLength: ROWS })
    fc.assert(
      fc.property(batches, (batch) => {
        const right = batch.map(([it]) => alone(runner, it))
        for (const [kvRow, [{ prompt, adapterSlot }, chunk]] of batch.entries()) {
          for (let startPosition = 0; startPosition < prompt.length; startPosition += chunk) {
            const tokens = Int32Array.from(prompt.slice(startPosition, startPosition + chunk))
            runner.prefill({ kvRow, tokens, startPosition, adapterSlot, logits: 'none' })
          }
        }
        for (let step = 0; step < 3; step++) {
          const logits = runner.decode({
            tokens: Int32Array.from(batch, ([it]) => it.next[step]!),
            positions: Int32Array.from(batch, ([it]) => it.prompt.length + step),
            adapterSlots: batch.map(([it]) => it.adapterSlot),
          })
          for (const row of batch.keys()) {
            const mine = logits.subarray(row * runner.vocabSize, (row + 1) * runner.vocabSize)
            expectClose(mine, right[row]![step]!)
          }
        }
      }),
      { numRuns: 25 },
    )
  })

  testMixed('rows that decode and prompts in one run give what each gets alone', () => {
    const batches = fc.tuple(
      fc.array(sequence, { minLength: 0, maxLength: 3 }),
      fc.array(sequence, { minLength: 1, maxLength: ROWS - 3 }),
      fc.nat(20),
    )
    fc.assert(
      fc.property(batches, ([decoding, prompts, cut]) => {
        const together = [...decoding, ...prompts].map((it) => ({ ...it, adapterSlot: sharing(it.adapterSlot) }))
        const right = together.map((it) => alone(runner, it))
        for (const [kvRow, { prompt, adapterSlot }] of together.slice(0, decoding.length).entries()) {
          runner.prefill({ kvRow, tokens: Int32Array.from(prompt), startPosition: 0, adapterSlot, logits: 'none' })
        }
        const running = together.slice(0, decoding.length)
        // The prompts and one token more, whose logits `right` has, in two runs beside the others' first two tokens.
        const texts = together.slice(decoding.length).map((it) => [...it.prompt, it.next[0]!])
        for (const step of [0, 1]) {
          const parts = texts.map((text, i) => {
            const at = Math.min(cut, text.length - 1)
            const [from, to] = step === 0 ? [0, at] : [at, text.length]
            return { i, from, to }
          })
          const chunks = parts
            .filter(({ from, to }) => to > from)
            .map(({ i, from, to }) => ({
              kvRow: decoding.length + i,
              tokens: Int32Array.from(texts[i]!.slice(from, to)),
              startPosition: from,
              adapterSlot: together[decoding.length + i]!.adapterSlot,
              logits: step === 0 ? ('none' as const) : ('last' as const),
            }))
          const logits = runner.mixed!.run({
            decode: {
              tokens: Int32Array.from(running, (it) => it.next[step]!),
              positions: Int32Array.from(running, (it) => it.prompt.length + step),
              adapterSlots: running.map((it) => it.adapterSlot),
            },
            chunks,
          })
          const rowOf = (row: number) => logits.subarray(row * runner.vocabSize, (row + 1) * runner.vocabSize)
          expect(logits.length).toBe((decoding.length + (step === 0 ? 0 : texts.length)) * runner.vocabSize)
          for (const row of running.keys()) {
            expectClose(rowOf(row), right[row]![step]!)
          }
          for (const i of step === 0 ? [] : texts.keys()) {
            expectClose(rowOf(decoding.length + i), right[decoding.length + i]![0]!)
          }
        }
      }),
      { numRuns: 40 },
    )
  })

  testMixed('adapters with parts by row do not share a run, and say so', () => {
    expect(runner.mixed!.takes([undefined, 0, 1])).toBe(true)
    expect(runner.mixed!.takes([undefined, DORA_SLOT])).toBe(false)
    const decode = { tokens: Int32Array.of(1), positions: Int32Array.of(0), adapterSlots: [DORA_SLOT] }
    expect(() => runner.mixed!.run({ decode, chunks: [] })).toThrow(/a run of its own/)
  })

  test("adapters change the base's logits, each in its own way", () => {
    const run = (adapterSlot: number | undefined) => alone(runner, { adapterSlot, prompt: [1, 2, 3], next: [4] })[0]!
    const all = [undefined, 0, 1, 2, 3, 4].map(run)
    for (const [i, a] of all.entries()) {
      for (const b of all.slice(i + 1)) {
        expect(a.some((value, v) => Math.abs(value - b[v]!) > 1e-3)).toBe(true)
      }
    }
  })

  test('logits of the last token are the last of all; hidden states match them in number', () => {
    const tokens = Int32Array.of(5, 6, 7, 8)
    const chunk = { kvRow: 1, tokens, startPosition: 0, adapterSlot: 2 }
    const all = runner.prefill({ ...chunk, logits: 'all' }).slice()
    expect(all.length).toBe(4 * runner.vocabSize)
    const last = runner.prefill({ ...chunk, logits: 'last' })
    expectClose(last, all.subarray(3 * runner.vocabSize), 1e-5)
    const hidden = runner.hiddenStates(chunk)
    expect(hidden.length).toBe(4 * runner.hiddenSize)
    expect(hidden.every(Number.isFinite)).toBe(true)
  })

  test('KV that is copied, or saved and restored in part, serves another row', () => {
    const prompt = [9, 8, 7, 6, 5, 4, 3, 2]
    const right = alone(runner, { adapterSlot: 0, prompt, next: [1] })[0]!
    const decodeRow3 = (): Float32Array => {
      const tokens = Int32Array.of(0, 0, 0, 1)
      const positions = Int32Array.of(90, 90, 90, prompt.length)
      const adapterSlots = [undefined, undefined, undefined, 0]
      return runner.decode({ tokens, positions, adapterSlots }).slice(3 * runner.vocabSize)
    }
    runner.copyRow(0, 3, prompt.length)
    expectClose(decodeRow3(), right)

    runner.prefill({
      kvRow: 0,
      tokens: Int32Array.from(prompt),
      startPosition: 0,
      adapterSlot: 0,
      logits: 'none',
    })
    const early = runner.saveKv({ kvRow: 0, start: 0, end: 3 })
    const later = runner.saveKv({ kvRow: 0, start: 3, end: 8 })
    expect(early.bytes + later.bytes).toBe(early.data.byteLength + later.data.byteLength)
    runner.prefill({ kvRow: 3, tokens: Int32Array.of(50, 51), startPosition: 0, adapterSlot: 1, logits: 'none' })
    runner.restoreKv(3, early, 3)
    runner.restoreKv(3, later, 5)
    const tokens = Int32Array.from(prompt.slice(5))
    runner.prefill({ kvRow: 3, tokens, startPosition: 5, adapterSlot: 0, logits: 'none' })
    expectClose(decodeRow3(), right)
  })

  test('an unloaded slot takes another adapter, and nothing of the old one stays', async () => {
    const slot = RANKS.length
    const other = tinyAdapter(base, 8, 7)
    const run = () => alone(runner, { adapterSlot: slot, prompt: [3, 1], next: [2] })[0]!
    runner.loadAdapter(slot, await packAdapter(adapters()[0]!, base, runner.adapterLayout))
    const first = run()
    runner.unloadAdapter(slot)
    runner.loadAdapter(slot, await packAdapter(other, base, runner.adapterLayout))
    const second = run()
    runner.unloadAdapter(slot)
    runner.loadAdapter(slot, await packAdapter(adapters()[0]!, base, runner.adapterLayout))
    expectClose(run(), first, 1e-6)
    expect(second.some((value, i) => Math.abs(value - first[i]!) > 1e-3)).toBe(true)
    runner.unloadAdapter(slot)
  })

  test('an empty slot fails; it never serves the base', () => {
    const tokens = Int32Array.of(1)
    const run = () => runner.decode({ tokens, positions: Int32Array.of(0), adapterSlots: [RANKS.length] })
    expect(run).toThrow(/slot 5 of 6 is empty/)
    const prefill = () => runner.prefill({ kvRow: 0, tokens, startPosition: 0, adapterSlot: 5, logits: 'none' })
    expect(prefill).toThrow(/slot 5 of 6 is empty/)
  })

  test('positions, rows and tokens out of range are refused', () => {
    const adapterSlots = [undefined]
    const position = Int32Array.of(TINY_SHAPE.positions)
    expect(() => runner.decode({ tokens: Int32Array.of(1), positions: position, adapterSlots })).toThrow(/position 96/)
    const token = Int32Array.of(TINY_SHAPE.vocab)
    const decode = () => runner.decode({ tokens: token, positions: Int32Array.of(0), adapterSlots })
    expect(decode).toThrow(/token 120 is outside the vocabulary of 120/)
    const chunk = { tokens: Int32Array.of(1), startPosition: 0, adapterSlot: undefined, logits: 'none' } as const
    expect(() => runner.prefill({ ...chunk, kvRow: ROWS })).toThrow(RingletError)
    expect(() => runner.prefill({ ...chunk, kvRow: 0, tokens: new Int32Array(0) })).toThrow(/0 tokens/)
    expect(() => runner.copyRow(0, ROWS, 1)).toThrow(/row 5/)
  })
})

test('int8 stays near f32, and rows have the same bits whatever their batch mates are', async () => {
  // All matrices in tiles, the head too.
  const whole = randomBase({ ...TINY_SHAPE, vocab: 128 })
  const exact = await openRunner(canRunLoraKernel(), 'f32', whole)
  const runner = await openRunner(canRunLoraKernel(), 'int8', whole)
  const sequences: Sequence[] = [0, 1, undefined, DORA_SLOT, 3].map((adapterSlot, i) => ({
    adapterSlot,
    prompt: [i, 7, 11 + i],
    next: [5],
  }))
  const right = sequences.map((it) => alone(exact, it)[0]!)
  const single = sequences.map((it) => alone(runner, it)[0]!)
  const together = (batch: readonly Sequence[]): Float32Array[] => {
    for (const [kvRow, { prompt, adapterSlot }] of batch.entries()) {
      runner.prefill({ kvRow, tokens: Int32Array.from(prompt), startPosition: 0, adapterSlot, logits: 'none' })
    }
    const logits = runner.decode({
      tokens: Int32Array.from(batch, (it) => it.next[0]!),
      positions: Int32Array.from(batch, (it) => it.prompt.length),
      adapterSlots: batch.map((it) => it.adapterSlot),
    })
    return batch.map((_, row) => logits.slice(row * runner.vocabSize, (row + 1) * runner.vocabSize))
  }
  const fused = runner.adapterLayout === 'kernel-tiled'
  for (const batch of [sequences, sequences.filter((it) => it.adapterSlot !== DORA_SLOT)]) {
    for (const [row, mine] of together(batch).entries()) {
      const i = sequences.indexOf(batch[row]!)
      fused ? expect(mine).toEqual(single[i]!) : expectClose(mine, single[i]!, 2e-3)
      const deviation = Math.sqrt(right[i]!.reduce((sum, value) => sum + value * value, 0) / right[i]!.length)
      expectClose(mine, right[i]!, deviation * 0.2)
    }
  }
  exact.dispose()
  runner.dispose()
})

test('int8: ranks whose A is all zero, as a merge with weight 0 leaves them, take no precision from the others', async () => {
  const whole = randomBase({ ...TINY_SHAPE, vocab: 128 })
  const runner = await openRunner(canRunLoraKernel(), 'int8', whole)
  const adapter = tinyAdapter(whole, 16, 5)
  const modules = adapter.modules.map((module) => {
    const { rank } = module
    const [inputs, outs] = [module.loraA.length / rank, module.loraB.length / rank]
    const loraA = new Float32Array((rank + 8) * inputs)
    loraA.set(module.loraA)
    const loraB = Float32Array.from({ length: outs * (rank + 8) }, (_, i) => {
      const [out, r] = [Math.floor(i / (rank + 8)), i % (rank + 8)]
      return r < rank ? module.loraB[out * rank + r]! : Math.sin(i)
    })
    return { ...module, rank: rank + 8, loraA, loraB }
  })
  const slot = RANKS.length
  const run = async (it: LoraAdapter): Promise<Float32Array> => {
    runner.loadAdapter(slot, await packAdapter(it, whole, runner.adapterLayout))
    const [logits] = alone(runner, { adapterSlot: slot, prompt: [3, 1], next: [2] })
    runner.unloadAdapter(slot)
    return logits!
  }
  expectClose(await run({ ...adapter, modules }), await run(adapter), 0.02)
  runner.dispose()
})
