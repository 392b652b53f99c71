// Decode steps by batch and adapters, and what follows from them: floors, LoRA ratios, copies, the host's share.

import { RowSampler } from '../../gpu-node/engine/sampling/row-sampler.ts'
import type { DrawContext } from '../../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../../gpu-node/engine/sampling/score-changes.ts'
import type { DeviceRunner } from '../../gpu-node/model/device/device-runner.ts'
import { packAdapter } from '../../gpu-node/model/pack-adapter.ts'
import type { PackedAdapter } from '../../gpu-node/model/packed-adapter.ts'
import { OrtBinding } from '../../gpu-node/ort/binding.ts'
import { interleave, type Timing } from '../interleave.ts'
import { randomAdapter, randomBase, type Shape } from '../random-base.ts'
import { type BenchDevice, openForBench } from './open.ts'
import type { GpuBenchSettings } from './settings.ts'

export interface ShapeReport {
  shape: string
  plan: string
  notices: string[]
  weightBytes: number
  adapterBytes: number
  /** Milliseconds a step. */
  steps: { batch: number; adapters: string; timing: Timing; tokensPerSecond: number }[]
  /** The figures; each with what is wanted of it. */
  ratios: Record<string, { value: number; wanted: string }>
}

export async function measureShape(
  settings: GpuBenchSettings,
  device: BenchDevice,
  name: string,
  shape: Shape,
  gigabytesPerSecond: number,
): Promise<ShapeReport> {
  const source = randomBase(shape)
  const { batches, slots, rank, rounds, lengths } = settings
  const maxRows = Math.max(...batches)
  const sizes = { maxRows, maxPositions: lengths[0] + lengths[1] + 8, maxChunk: lengths[0], maxLogits: maxRows }
  const { runner, plan, notices } = await openForBench(settings, device, source, sizes, { slots, maxRank: rank })
  try {
    runner.warmUp()
    const adapters: PackedAdapter[] = []
    for (let i = 0; i < Math.min(slots, 8); i++) {
      adapters.push(await packAdapter(randomAdapter(source.decoder, rank, i + 1), source, runner.adapterLayout))
    }
    const copies = loadAll(runner, adapters, slots)
    const position = lengths[0] + lengths[1] - 1
    const steps: ShapeReport['steps'] = []
    const ms = new Map<string, number>()
    for (const batch of batches) {
      const timings = interleave(stepsOf(runner, batch, slots, position, shape.vocab), rounds)
      for (const [kind, timing] of Object.entries(timings)) {
        steps.push({ batch, adapters: kind, timing, tokensPerSecond: (1000 * batch) / timing.medianMs })
        ms.set(`${kind}/${batch}`, timing.medianMs)
      }
    }
    const last = maxRows
    const at = (kind: string, batch: number): number => ms.get(`${kind}/${batch}`) ?? Number.NaN
    const floorMs = runner.weightBytes / gigabytesPerSecond / 1e6
    const many = manyAdapters(runner, settings, adapters)
    const ratio = (value: number, wanted: string) => ({ value, wanted })
    return {
      shape: name,
      plan,
      notices,
      weightBytes: runner.weightBytes,
      adapterBytes: adapters[0]!.bytes,
      steps,
      ratios: {
        'memory floor / step, batch 1': ratio(floorMs / at('none', 1), '≥ 0.70'),
        [`tokens/s, batch ${last} / batch 1`]: ratio((last * at('none', 1)) / at('none', last), '≥ 15 at 32'),
        [`one adapter / base, batch ${last}`]: ratio(at('none', last) / at('1', last), '≥ 0.85'),
        [`8 adapters / 1, batch ${last}`]: ratio(at('1', last) / at('8', last), '≥ 0.95'),
        [`${slots} adapters in turns / 1, batch ${last}`]: ratio(at('1', last) / at('all', last), '≥ 0.85'),
        [`mixed / serial, ${last} adapters`]: ratio((last * at('1', 1)) / at('all', last), '≥ 8 at 32'),
        'an adapter from host memory for every sequence / 5 that stay': ratio(many, '≥ 0.90'),
        'host to device copy of an adapter, ms': ratio(copies, '≤ 5'),
        [`host's share of a step, batch ${last}`]: ratio(hostShare(runner, last, position, shape.vocab), '≤ 0.10'),
      },
    }
  } finally {
    runner.dispose()
  }
}

/** Fills every slot; the median of the loads, in ms. */
function loadAll(runner: DeviceRunner, adapters: readonly PackedAdapter[], slots: number): number {
  const times: number[] = []
  for (let slot = 0; slot < slots; slot++) {
    const start = performance.now()
    runner.loadAdapter(slot, adapters[slot % adapters.length]!)
    runner.settle([slot])
    times.push(performance.now() - start)
  }
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)]!
}

/** `all`: the rows take the slots in turns, step by step, so that every adapter has its turn. */
function stepsOf(
  runner: DeviceRunner,
  rows: number,
  slots: number,
  position: number,
  vocab: number,
): Record<string, () => void> {
  const tokens = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % vocab)
  const positions = new Int32Array(rows).fill(position)
  const sampler = new RowSampler(vocab, runner.kept)
  const draws = Array.from({ length: rows }, (_, row) => ({ row, context: greedy() }))
  let turn = 0
  const step = (slotOf: (row: number) => number | undefined) => () => {
    runner.decode({
      tokens,
      positions,
      adapterSlots: Array.from({ length: rows }, (_, row) => slotOf(row)),
      keep: true,
    })
    sampler.draw(undefined, draws)
  }
  return {
    none: step(() => undefined),
    1: step(() => 0),
    8: step((row) => row % Math.min(8, slots)),
    all: () => {
      turn++
      step((row) => (row + turn * rows) % slots)()
    },
  }
}

/** Tokens per second of sequences whose adapters come from the host, over those of five that stay on the device. */
function manyAdapters(
  runner: DeviceRunner,
  { slots, lengths, batches }: GpuBenchSettings,
  adapters: readonly PackedAdapter[],
): number {
  const rows = Math.max(...batches)
  let next = 0
  // Harder than 1,000 adapters of which some are still there: every sequence brings its own.
  const serve = (slotFor: (row: number) => number): number => {
    const start = performance.now()
    const adapterSlots = Array.from({ length: rows }, (_, row) => slotFor(row))
    for (let kvRow = 0; kvRow < rows; kvRow++) {
      const tokens = new Int32Array(lengths[0]).fill(kvRow + 1)
      runner.prefill({ kvRow, tokens, startPosition: 0, adapterSlot: adapterSlots[kvRow], logits: 'last', keep: true })
    }
    for (let i = 0; i < lengths[1]; i++) {
      const positions = new Int32Array(rows).fill(lengths[0] + i)
      runner.decode({ tokens: new Int32Array(rows).fill(i), positions, adapterSlots, keep: true })
    }
    return performance.now() - start
  }
  const fresh = (): number => {
    const slot = next % slots
    runner.unloadAdapter(slot)
    runner.loadAdapter(slot, adapters[next++ % adapters.length]!)
    return slot
  }
  serve((row) => row % 5)
  const few: number[] = []
  const many: number[] = []
  for (let turn = 0; turn < 4; turn++) {
    few.push(serve((row) => row % 5))
    many.push(serve(fresh))
  }
  const sum = (times: number[]): number => times.reduce((total, time) => total + time, 0)
  return sum(few) / sum(many)
}

function greedy(): DrawContext {
  const params = { temperature: 1, doSample: false, seed: 0, alternatives: 0 }
  const history = new TokenHistory(params, new Int32Array(0), new Int32Array(0))
  return { params, history, previousToken: 0, draw: 0, mask: undefined }
}

/** What of a greedy step is not spent in ONNX Runtime's runs. */
function hostShare(runner: DeviceRunner, rows: number, position: number, vocab: number): number {
  const sampler = new RowSampler(vocab, runner.kept)
  const draws = Array.from({ length: rows }, (_, row) => ({ row, context: greedy() }))
  const tokens = new Int32Array(rows).fill(1)
  const positions = new Int32Array(rows).fill(position)
  const adapterSlots = Array.from({ length: rows }, (_, row) => row % 8)
  const run = OrtBinding.prototype.run
  let inside = 0
  OrtBinding.prototype.run = function (this: OrtBinding, ...options) {
    const start = performance.now()
    run.apply(this, options)
    inside += performance.now() - start
  }
  try {
    const shares: number[] = []
    for (let i = 0; i < 20; i++) {
      inside = 0
      const start = performance.now()
      runner.decode({ tokens, positions, adapterSlots, keep: true })
      sampler.draw(undefined, draws)
      const whole = performance.now() - start
      shares.push((whole - inside) / whole)
    }
    return shares.sort((a, b) => a - b)[10]!
  } finally {
    OrtBinding.prototype.run = run
  }
}
