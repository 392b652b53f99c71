// Draws from the device's shortlists against those from whole rows of logits.

import type { SamplingParams } from '../../gpu-node/engine/engine-types.ts'
import { RowSampler } from '../../gpu-node/engine/sampling/row-sampler.ts'
import { type DrawContext, Sampler } from '../../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../../gpu-node/engine/sampling/score-changes.ts'
import { DeviceContext } from '../../gpu-node/model/device/device-context.ts'
import { DeviceLogits } from '../../gpu-node/model/device/device-logits.ts'
import { OutputRows } from '../../gpu-node/model/device/device-outputs.ts'
import { OrtEnvironment } from '../../gpu-node/ort/environment.ts'
import { type BenchDevice, targetOf } from './open.ts'
import type { GpuBenchSettings } from './settings.ts'

export interface SamplingParity {
  draws: number
  agreed: number
  /** Draws for which the whole row came down. */
  wholeRows: number
  ok: boolean
}

const ROWS = 8
const BASE = { temperature: 0.8, doSample: true, alternatives: 0 }
const KINDS: Omit<SamplingParams, 'seed'>[] = [
  { ...BASE, doSample: false },
  { ...BASE, doSample: false, repetitionPenalty: 1.2, frequencyPenalty: 0.4 },
  { ...BASE, topK: 40, topP: 0.9 },
  { ...BASE, topP: 0.8 },
  { ...BASE, minP: 0.1 },
  BASE,
  { ...BASE, presencePenalty: 1, logitBias: [[3, 5]] },
  { ...BASE, topK: 20, repetitionPenalty: 0.8 },
]

export function measureSampling(settings: GpuBenchSettings, device: BenchDevice): SamplingParity {
  const vocabSize = Math.max(...settings.shapes.map(({ shape }) => shape.vocab))
  const environment = new OrtEnvironment(settings.threads, device.libraryFile)
  const context = new DeviceContext(environment, targetOf(settings, device, 2 ** 30, 2 ** 30))
  try {
    return drawBoth(context, vocabSize, settings)
  } finally {
    context.dispose()
    environment.dispose()
  }
}

function drawBoth(context: DeviceContext, vocabSize: number, settings: GpuBenchSettings): SamplingParity {
  const rows = new OutputRows(context, ROWS, vocabSize)
  const fetch = (first: number, count: number) => rows.fetch(count, first)
  const own = { has: () => false, logits: () => new Float32Array(0) }
  const { graphs } = settings
  const kept = new DeviceLogits(
    context,
    { address: rows.address, rows: ROWS, vocabSize, fetch },
    { maxRows: ROWS, graphs, own },
  )
  const short = new RowSampler(vocabSize, kept)
  const whole = new Sampler(vocabSize)
  let agreed = 0
  let draws = 0
  for (let round = 0; round < settings.rounds; round++) {
    const logits = Float32Array.from({ length: ROWS * vocabSize }, (_, i) => 8 * Math.sin(i * 12.9898 + round * 78.233))
    context.upload(logits, rows.address)
    // Every other round with masks that allow each third token.
    const mask = round % 2 === 0 ? undefined : thirds(vocabSize)
    const contexts = KINDS.map((kind, row) => contextOf({ ...kind, seed: 1000 * round + row }, mask))
    const drawn = short.draw(
      undefined,
      contexts.map((it, row) => ({ row, context: it })),
    )
    for (const [row, it] of contexts.entries()) {
      const wanted = whole.sample(logits.subarray(row * vocabSize, (row + 1) * vocabSize), it)
      const found = drawn[row]!
      draws++
      agreed +=
        wanted.kind === 'token' && found.kind === 'token' && wanted.token.tokenId === found.token.tokenId ? 1 : 0
    }
  }
  kept.dispose()
  rows.dispose()
  return { draws, agreed, wholeRows: short.wholeRows, ok: agreed === draws }
}

function thirds(vocabSize: number): Int32Array {
  const mask = new Int32Array(Math.ceil(vocabSize / 32))
  for (let token = 0; token < vocabSize; token += 3) {
    mask[token >> 5]! |= 1 << (token & 31)
  }
  return mask
}

function contextOf(params: SamplingParams, mask: Int32Array | undefined): DrawContext {
  const history = new TokenHistory(params, Int32Array.of(1, 2, 3, 5, 8), Int32Array.of(2, 2, 9))
  return { params, history, previousToken: 9, draw: 3, mask }
}
