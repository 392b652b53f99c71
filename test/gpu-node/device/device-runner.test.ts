import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { openDeviceRunner } from '../../../gpu-node/model/device/open-device-runner.ts'
import { packAdapter } from '../../../gpu-node/model/pack-adapter.ts'
import { createOrtRunner } from '../../../gpu-node/model/runner/ort-runner.ts'
import { RingletError } from '../../../shared/errors.ts'
import { TINY_SHAPE, tinyAdapter, tinyBase } from '../../support/tiny-base.ts'

const base = tinyBase()
const ROWS = 4
const SLOTS = 7
const RANKS = [1, 4, 16, 3, 8]

/** The device's code on the processor, in f32, beside the processor's own runner. */
const device = await openDeviceRunner({
  checkpoint: base,
  format: 'f32',
  target: { kind: 'cpu' },
  threads: 2,
  sizes: { maxRows: ROWS, maxPositions: TINY_SHAPE.positions, maxChunk: 9, maxLogits: 5 },
  banks: { slots: SLOTS, maxRank: 16 },
  graphs: false,
})
const plain = await createOrtRunner({
  checkpoint: base,
  dtype: 'f32',
  threads: 2,
  maxRows: ROWS,
  maxPositions: TINY_SHAPE.positions,
  adapterSlots: SLOTS,
  kernels: false,
})
const both = [device, plain]
afterAll(() => {
  device.dispose()
  plain.dispose()
})

async function load(slot: number, rank: number, seed: number): Promise<void> {
  for (const runner of both) {
    runner.loadAdapter(slot, await packAdapter(tinyAdapter(base, rank, seed), base, runner.adapterLayout))
  }
}
for (const [slot, rank] of RANKS.entries()) {
  await load(slot, rank, 50 + slot)
}

function expectSame(act: (runner: (typeof both)[number]) => Float32Array, tolerance = 1e-4): void {
  const [mine, right] = both.map((runner) => act(runner).slice())
  expect(mine!.length).toBe(right!.length)
  let worst = 0
  for (const [i, value] of right!.entries()) {
    const difference = Math.abs(mine![i]! - value)
    worst = difference <= worst ? worst : difference
  }
  expect(worst).toBeLessThan(tolerance)
}

const slotOrBase = fc.option(fc.nat(RANKS.length - 1), { nil: undefined })
const token = fc.nat(TINY_SHAPE.vocab - 1)

describe('the device runner', () => {
  test('gives what the processor’s runner gives, for any mix of adapters, chunks and kinds of output', () => {
    const row = fc.record({
      adapterSlot: slotOrBase,
      prompt: fc.array(token, { minLength: 1, maxLength: 25 }),
      logits: fc.constantFrom('none' as const, 'last' as const, 'all' as const),
    })
    fc.assert(
      fc.property(fc.array(row, { minLength: 1, maxLength: ROWS }), token, (rows, next) => {
        for (const [kvRow, { prompt, adapterSlot, logits }] of rows.entries()) {
          const chunk = { kvRow, tokens: Int32Array.from(prompt), startPosition: 0, adapterSlot }
          expectSame((runner) => runner.prefill({ ...chunk, logits }))
          expectSame((runner) => runner.hiddenStates(chunk))
        }
        for (let step = 0; step < 2; step++) {
          expectSame((runner) =>
            runner.decode({
              tokens: Int32Array.from(rows, () => next),
              positions: Int32Array.from(rows, ({ prompt }) => prompt.length + step),
              adapterSlots: rows.map(({ adapterSlot }) => adapterSlot),
            }),
          )
        }
      }),
      { numRuns: 25 },
    )
  })

  test('KV that is copied, or saved and restored in part, serves another row', () => {
    const prompt = Int32Array.of(9, 8, 7, 6, 5, 4, 3, 2)
    const decodeLast = (runner: (typeof both)[number]) => {
      const positions = Int32Array.of(90, 90, 90, prompt.length)
      const batch = { tokens: Int32Array.of(0, 0, 0, 1), positions, adapterSlots: [undefined, undefined, undefined, 2] }
      return runner.decode(batch).slice(3 * runner.vocabSize)
    }
    for (const runner of both) {
      runner.prefill({ kvRow: 0, tokens: prompt, startPosition: 0, adapterSlot: 2, logits: 'none' })
      runner.copyRow(0, 3, prompt.length)
    }
    const right = decodeLast(plain).slice()
    expectSame(decodeLast)
    for (const runner of both) {
      const first = runner.saveKv({ kvRow: 0, start: 0, end: 5 })
      const rest = runner.saveKv({ kvRow: 0, start: 3, end: prompt.length })
      runner.prefill({ kvRow: 3, tokens: new Int32Array(12).fill(1), startPosition: 0, adapterSlot: 0, logits: 'none' })
      runner.restoreKv(3, first, 4)
      runner.restoreKv(3, rest, prompt.length)
    }
    expectSame(decodeLast)
    expect(Math.max(...decodeLast(device).map((value, i) => Math.abs(value - right[i]!)))).toBeLessThan(1e-4)
  })

  test('a slot that is used again holds nothing of the adapter before, also of a higher rank', async () => {
    await load(5, 16, 900)
    for (const runner of both) {
      runner.unloadAdapter(5)
    }
    await load(5, 2, 901)
    const chunk = { kvRow: 0, tokens: Int32Array.of(5, 6, 7), startPosition: 0, adapterSlot: 5, logits: 'all' as const }
    expectSame((runner) => runner.prefill(chunk))
    const batch = { tokens: Int32Array.of(1, 2), positions: Int32Array.of(3, 3), adapterSlots: [5, undefined] }
    device.prefill({ ...chunk, kvRow: 1, adapterSlot: undefined })
    plain.prefill({ ...chunk, kvRow: 1, adapterSlot: undefined })
    expectSame((runner) => runner.decode(batch))
  })

  test('an adapter whose products are infinite harms no other row of its step', async () => {
    const wild = tinyAdapter(base, 4, 77)
    for (const module of wild.modules) {
      module.loraA.fill(3e38)
    }
    device.loadAdapter(6, await packAdapter(wild, base, device.adapterLayout))
    for (const runner of both) {
      for (const kvRow of [0, 1, 2]) {
        runner.prefill({ kvRow, tokens: Int32Array.of(4, 5), startPosition: 0, adapterSlot: 1, logits: 'none' })
      }
    }
    const batch = { tokens: Int32Array.of(1, 2, 3), positions: Int32Array.of(2, 2, 2) }
    const mixed = device.decode({ ...batch, adapterSlots: [1, undefined, 6] }).slice()
    const right = plain.decode({ ...batch, adapterSlots: [1, undefined, 1] })
    const rows = 2 * device.vocabSize
    expect(mixed.subarray(rows).some((value) => Number.isNaN(value))).toBe(true)
    expect(Math.max(...mixed.subarray(0, rows).map((value, i) => Math.abs(value - right[i]!)))).toBeLessThan(1e-4)
    device.unloadAdapter(6)
  })

  test('where runs cannot be captured they run as they are, and that is said once', async () => {
    const notices: string[] = []
    const runner = await openDeviceRunner({
      checkpoint: base,
      format: 'f32',
      // The processor, which captures nothing.
      target: { kind: 'cpu' },
      threads: 2,
      sizes: { maxRows: ROWS, maxPositions: TINY_SHAPE.positions, maxChunk: 9, maxLogits: 5 },
      banks: { slots: SLOTS, maxRank: 16 },
      graphs: true,
      onNotice: (text) => notices.push(text),
    })
    runner.loadAdapter(0, await packAdapter(tinyAdapter(base, RANKS[0]!, 50), base, runner.adapterLayout))
    for (const adapterSlot of [undefined, 0]) {
      const chunk = { kvRow: 0, tokens: Int32Array.of(4, 5), startPosition: 0, adapterSlot, logits: 'none' as const }
      const batch = { tokens: Int32Array.of(1), positions: Int32Array.of(2), adapterSlots: [adapterSlot] }
      for (const it of [runner, device]) {
        it.prefill(chunk)
      }
      const right = device.decode(batch).slice()
      // As often as a shape repeats before it would be captured, and once more.
      for (let i = 0; i < 6; i++) {
        expect([...runner.decode(batch)]).toEqual([...right])
      }
    }
    expect(notices).toEqual(['CUDA graphs are off: the processor captures no graphs'])
    runner.dispose()
  })

  test('refuses what it cannot take, and goes on', async () => {
    const wide = await packAdapter(tinyAdapter(base, 17, 1), base, device.adapterLayout)
    expect(() => device.loadAdapter(6, wide)).toThrow("the adapter's rank is 17; this node's slots hold 16")
    const other = await packAdapter(tinyAdapter(base, 2, 1), base, 'graph')
    expect(() => device.loadAdapter(6, other)).toThrow('an adapter packed as graph; this engine takes device-float32')
    const decode = (adapterSlot: number, position = 0) =>
      device.decode({ tokens: Int32Array.of(1), positions: Int32Array.of(position), adapterSlots: [adapterSlot] })
    expect(() => decode(6)).toThrow(RingletError)
    expect(() => decode(0, TINY_SHAPE.positions)).toThrow('the KV cache has 96')
    const huge = tinyAdapter(base, 2, 1)
    huge.modules[0]!.loraA[0] = 1e6
    await expect(packAdapter(huge, base, 'device-float16')).rejects.toMatchObject({ code: 'adapter_refused' })
    expect(decode(0).every(Number.isFinite)).toBe(true)
  })
})
