import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { randomBase } from '../../../bench/random-base.ts'
import { chooseDevice, parseDevice } from '../../../gpu-node/device-choice.ts'
import {
  bankElements,
  bankRows,
  imageBlocks,
  imageElements,
  slotRow,
} from '../../../gpu-node/model/device/bank-layout.ts'
import {
  BASE_SLOT,
  type DeviceTraits,
  NO_OWNER,
  planDevice,
  writeGatherRows,
  writeSlotOwners,
} from '../../../gpu-node/model/device/choose-device-form.ts'
import { deviceNeeds } from '../../../gpu-node/model/device/device-needs.ts'
import { GraphCaptures, totalBucket } from '../../../gpu-node/model/device/graph-captures.ts'
import { bfloatBits, narrow } from '../../../gpu-node/model/device/narrow.ts'
import { deviceModel, openDeviceRunner } from '../../../gpu-node/model/device/open-device-runner.ts'
import { planWeights } from '../../../gpu-node/model/graph/weight-plan.ts'
import { packAdapter } from '../../../gpu-node/model/pack-adapter.ts'
import { kvBytes, planMemory, weightBytes } from '../../../gpu-node/model/runner/memory-plan.ts'
import { cudaOptionTexts } from '../../../gpu-node/ort/cuda-provider.ts'
import { RingletError } from '../../../shared/errors.ts'
import { TINY_SHAPE, tinyAdapter, tinyBase } from '../../support/tiny-base.ts'

const base = tinyBase()
const plan = planWeights(base.decoder)
const GIB = 2 ** 30
const LLAMA_3_8B = { hidden: 4096, heads: 32, kvHeads: 8, headSize: 128, inner: 14_336, positions: 512 }

describe('the memory plan', () => {
  const gpu = { name: 'GPU 0 (test)', totalBytes: 10 * GIB, freeBytes: 9 * GIB, fraction: 0.8 }

  test('allows what fits and refuses the rest with the numbers', () => {
    expect(planMemory([{ name: 'weights', bytes: 8 * GIB }], gpu)).toMatchObject({ total: 8 * GIB, limit: 8 * GIB })
    const needs = [
      { name: 'weights', bytes: 7 * GIB },
      { name: 'KV', bytes: 1.5 * GIB, of: '16 rows of 2048 positions' },
    ]
    const refuse = () => planMemory(needs, gpu)
    expect(refuse).toThrow(RingletError)
    expect(refuse).toThrow(
      'the model does not fit: 8.5 GiB = weights 7.0 GiB + KV 1.5 GiB (16 rows of 2048 positions); GPU 0 (test) has 10.0 GiB, 9.0 GiB free, 8.0 GiB may be used (fraction 0.8)',
    )
  })

  test('what others hold is not counted twice: the free memory is a limit too', () => {
    expect(() => planMemory([{ name: 'weights', bytes: 8 * GIB }], { ...gpu, freeBytes: 7 * GIB })).toThrow(
      '7.0 GiB free',
    )
  })

  test.each([
    ['f32', 'float32', 'f32', 4],
    ['f16', 'float16', 'f32', 2],
    ['int8', 'float16', 'int8', 2],
    ['int4', 'float16', 'int4', 2],
  ] as const)('weights in %s take what was planned, to the byte', async (format, floats, weights, floatBytes) => {
    const banks = { slots: 1, maxRank: 1 }
    const sizes = { maxRows: 1, maxPositions: 8, maxChunk: 4, maxLogits: 1 }
    const target = { kind: 'cpu' } as const
    const runner = await openDeviceRunner({ checkpoint: base, format, target, threads: 1, sizes, banks, graphs: false })
    const table = format === 'f16' || format === 'f32' ? 0 : TINY_SHAPE.vocab * TINY_SHAPE.hidden * floatBytes
    expect(runner.weightBytes).toBe(weightBytes(base.decoder, plan, weights, floatBytes) + table)
    const needs = deviceNeeds(deviceModel(base.decoder, format, banks, floats), sizes).needs
    expect(needs.find(({ name }) => name === 'weights')?.bytes).toBe(runner.weightBytes)
    runner.dispose()
  })

  test('KV by hand: two layers of two heads of 16', () => {
    expect(kvBytes(base.decoder, 3, 10, 2)).toBe(2 * 2 * 3 * 2 * 10 * 16 * 2)
  })

  test('quantised weights: room for the largest matrix in halves, to which products of several tokens unpack it', () => {
    const sizes = { maxRows: 8, maxPositions: 512, maxChunk: 128, maxLogits: 8 }
    const limit = (format: 'f16' | 'int4', vocab: number) => {
      const decoder = randomBase({ ...LLAMA_3_8B, layers: 1, vocab }).decoder
      return deviceNeeds(deviceModel(decoder, format, { slots: 1, maxRank: 1 }), sizes).workspaceLimit
    }
    const more = (vocab: number) => (limit('int4', vocab) - limit('f16', vocab)) / 1.3
    // Gate and up, the head, and a head so large that it is unpacked in parts of 32,768 rows.
    expect(more(1000)).toBeCloseTo(2 * 14_336 * 4096 * 2, -1)
    expect(more(32_000)).toBeCloseTo(32_000 * 4096 * 2, -1)
    const inParts = limit('int4', 128_256) / 1.3
    expect(inParts).toBeGreaterThan(32_768 * 4096 * 2)
    expect(inParts).toBeLessThan(128_256 * 4096 * 2)
  })

  test('more rows, slots and positions take more', () => {
    const of = (slots: number, maxRows: number, maxPositions: number) =>
      deviceNeeds(deviceModel(base.decoder, 'f16', { slots, maxRank: 8 }), {
        maxRows,
        maxPositions,
        maxChunk: 8,
        maxLogits: 4,
      })
    expect(of(2, 1, 8).residentLimit).toBeGreaterThan(of(1, 1, 8).residentLimit)
    expect(of(1, 2, 8).residentLimit).toBeGreaterThan(of(1, 1, 8).residentLimit)
    expect(of(1, 1, 16).residentLimit).toBeGreaterThan(of(1, 1, 8).residentLimit)
  })
})

describe('the banks', () => {
  const sizes = { slots: 3, maxRank: 4 }

  test('slots and images lie one after another without gaps', () => {
    expect([0, 1, 2].map((slot) => slotRow(slot, 3, sizes))).toEqual([0, 12, 24])
    expect(bankRows(3, sizes)).toBe(36)
    let end = 0
    for (const { offset, rows, columns } of imageBlocks(plan, 2, true)) {
      expect(offset).toBe(end)
      end += rows * columns
    }
    expect(imageElements(plan, 2, true)).toBe(end)
    const perRank = imageElements(plan, 1, true)
    expect(bankElements(plan, sizes)).toBeGreaterThanOrEqual(perRank * sizes.maxRank * sizes.slots)
  })

  test('each rank row that takes part is owned by its slot, all others by nobody, whatever the adapters', () => {
    const step = fc.record({
      ranks: fc.array(fc.integer({ min: 1, max: 8 }), { minLength: 1, maxLength: 12 }),
      rows: fc.array(fc.option(fc.nat(11), { nil: undefined }), { minLength: 1, maxLength: 16 }),
      parts: fc.integer({ min: 1, max: 3 }),
    })
    fc.assert(
      fc.property(step, ({ ranks, rows, parts }) => {
        const banks = { slots: ranks.length, maxRank: 8 }
        const slots = rows.map((row) => (row === undefined ? undefined : row % ranks.length))
        const traitsOf = (slot: number): DeviceTraits => ({
          rank: ranks[slot]!,
          extras: false,
          head: false,
          embedding: false,
        })
        const chosen = planDevice(slots, traitsOf, banks)
        const used = [...new Set(slots.filter((slot) => slot !== undefined))]
        if (used.length === 0) {
          expect(chosen.form.lora).toBe('none')
          return
        }
        const total = bankRows(parts, banks)
        const owners = new Int32Array(total).fill(NO_OWNER)
        const places = new Int32Array(total)
        if (chosen.form.lora === 'gather') {
          writeGatherRows(chosen, traitsOf, banks, parts, places, owners)
        } else {
          for (const [slot, rank] of ranks.entries()) {
            writeSlotOwners(slot, rank, banks, parts, owners)
          }
          places.set(Array.from(places, (_, row) => row))
        }
        const taking = chosen.ranks * parts
        expect(taking).toBeLessThanOrEqual(total)
        expect(owners.includes(BASE_SLOT)).toBe(false)
        for (const slot of used) {
          const mine = [...places.keys()].filter((i) => i < taking && owners[i] === slot).map((i) => places[i]!)
          const wanted = Array.from({ length: ranks[slot]! * parts }, (_, i) => slotRow(slot, parts, banks) + i)
          expect(mine.sort((a, b) => a - b)).toEqual(wanted)
        }
      }),
    )
  })

  test('few of many slots are gathered, most of the low ones are read in place', () => {
    const traitsOf = () => ({ rank: 8, extras: false, head: false, embedding: false })
    const banks = { slots: 64, maxRank: 8 }
    expect(planDevice([3, 60], traitsOf, banks)).toMatchObject({ form: { lora: 'gather' }, ranks: 16 })
    expect(planDevice([0, 1, 2], traitsOf, banks)).toMatchObject({ form: { lora: 'window' }, ranks: 24 })
    expect(planDevice([undefined], traitsOf, banks)).toMatchObject({ form: { lora: 'none' }, ranks: 0 })
  })
})

describe('captured graphs', () => {
  test('are for shapes that repeat, each under an id of its own, up to a number', () => {
    const captures = new GraphCaptures()
    const ids = [1, 2, 3, 4, 5].map(() => captures.idOf('a'))
    expect(ids).toEqual([undefined, undefined, undefined, 1, 1])
    for (let shape = 0; shape < 100; shape++) {
      ;[1, 2, 3, 4].map(() => captures.idOf(`s${shape}`))
    }
    const known = Array.from({ length: 100 }, (_, shape) => captures.idOf(`s${shape}`)).filter((id) => id !== undefined)
    expect(new Set(known).size).toBe(known.length)
    expect(Math.max(...known)).toBe(64)
  })

  test('positions are rounded up to few values, never above the cache and never below what a row has', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 5000 }), fc.nat(), (most, at) => {
        const positions = 1 + (at % most)
        const bucket = totalBucket(positions, most)
        expect(bucket).toBeGreaterThanOrEqual(positions)
        expect(bucket).toBeLessThanOrEqual(most)
      }),
    )
  })

  test('are asked of the provider by text', () => {
    const texts = cudaOptionTexts({ deviceId: 1, memoryLimit: 1024.5, graphs: true })
    expect(texts).toMatchObject({ device_id: '1', gpu_mem_limit: '1024', enable_cuda_graph: '1' })
  })
})

describe('--device', () => {
  test.each([
    ['cpu', { kind: 'cpu' }],
    ['auto', { kind: 'auto' }],
    ['cuda', { kind: 'cuda', deviceIds: [0] }],
    ['cuda:2', { kind: 'cuda', deviceIds: [2] }],
    ['cuda:0,3', { kind: 'cuda', deviceIds: [0, 3] }],
  ])('%s', (text, wanted) => expect(parseDevice(text)).toEqual(wanted))

  test.each(['gpu', 'cuda:', 'cuda:a', 'cuda:1,1', 'cuda:0,'])('%s is refused', (text) => {
    expect(() => parseDevice(text)).toThrow()
  })

  test('auto takes the GPU where CUDA works and says why where not; a GPU asked for is never replaced', () => {
    const auto = { kind: 'auto' } as const
    expect(chooseDevice(auto, undefined, undefined)).toMatchObject({ kind: 'cuda', dtype: 'f16', deviceIds: [0] })
    const cpu = { kind: 'cpu', dtype: 'int8', line: 'device: cpu (no CUDA: no driver)' }
    expect(chooseDevice(auto, undefined, 'no driver')).toEqual(cpu)
    expect(() => chooseDevice({ kind: 'cuda', deviceIds: [0] }, undefined, 'no driver')).toThrow(
      '--device cuda: no driver',
    )
    expect(() => chooseDevice(auto, 'f16', 'no driver')).toThrow('CUDA does not work here: no driver')
    expect(() => chooseDevice(auto, 'f32', undefined)).toThrow('--dtype f32 is for the processor')
  })
})

describe('bfloat16', () => {
  test('is the nearest number, ties to even', () => {
    fc.assert(
      fc.property(
        fc.float({ noNaN: true, noDefaultInfinity: true, max: Math.fround(3e38), min: Math.fround(-3e38) }),
        (value) => {
          const out = new Uint16Array(1)
          expect(narrow(Float32Array.of(value), out, 'bfloat16')).toBe(0)
          const numberOf = (bits: number): number => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!
          const [mine, above, below] = [out[0]!, out[0]! + 1, out[0]! - 1]
          const distance = Math.abs(numberOf(mine) - value)
          for (const bits of [above, below]) {
            const other = Math.abs(numberOf(bits) - value)
            // Beside zero lies the other sign's largest, beside the largest infinity.
            if (!Number.isNaN(other)) {
              expect(distance < other || (distance === other && mine % 2 === 0)).toBe(true)
            }
          }
        },
      ),
    )
    const out = new Uint16Array(3)
    expect(narrow(Float32Array.of(3.4e38, Number.POSITIVE_INFINITY, Number.NaN), out, 'bfloat16')).toBe(1)
    expect([...out]).toEqual([0x7f80, 0x7f80, 0x7fc0])
  })

  test('is not for the processor', async () => {
    const sizes = { maxRows: 1, maxPositions: 8, maxChunk: 4, maxLogits: 1 }
    const opening = openDeviceRunner({
      checkpoint: base,
      format: 'bf16',
      target: { kind: 'cpu' },
      threads: 1,
      sizes,
      banks: { slots: 1, maxRank: 1 },
      graphs: false,
    })
    await expect(opening).rejects.toMatchObject({ code: 'not_supported' })
    expect(() => chooseDevice({ kind: 'auto' }, 'bf16', 'no driver')).toThrow('--dtype bf16 is for GPUs')
    expect(chooseDevice({ kind: 'auto' }, 'bf16', undefined)).toMatchObject({ kind: 'cuda', dtype: 'bf16' })
  })

  test('an adapter is packed for it, with numbers that float16 lacks', async () => {
    const wild = tinyAdapter(base, 2, 1)
    wild.modules[0]!.loraA[0] = 1e6
    const { layout, parts, bytes } = await packAdapter(wild, base, 'device-bfloat16')
    expect(layout).toBe('device-bfloat16')
    expect(bytes).toBe((await packAdapter(tinyAdapter(base, 2, 1), base, 'device-float16')).bytes)
    const image = Object.values(parts)[0]!
    expect([...new Uint16Array(image.buffer)]).toContain(bfloatBits(new Uint32Array(Float32Array.of(1e6).buffer)[0]!))
  })
})
