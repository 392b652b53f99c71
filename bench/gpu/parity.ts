// Golden logits and greedy tokens of the reference through the device runner.

import { join } from 'node:path'
import { runGoldenCase } from '../../gpu-node/cli/golden-case.ts'
import { type BenchDevice, openForBench } from './open.ts'
import type { GpuBenchSettings } from './settings.ts'

/** Largest difference of logits, over the reference's spread: f32, halves, bfloat16, and weights in 8 and 4 bits. */
const TOLERANCE = { f32: 1e-3, f16: 0.03, bf16: 0.25, int8: 0.3, int4: 1.5 } as const

export interface ParityRow {
  model: string
  runs: number
  worstRelative: number
  tolerance: number
  tokensAgreed: number
  tokensWanted: number
  notCovered: string[]
  ok: boolean
}

export async function measureParity(
  settings: GpuBenchSettings,
  device: BenchDevice,
  model: string,
): Promise<ParityRow> {
  const folder = join(import.meta.dirname, '../../test/fixtures/goldens', model)
  const report = await runGoldenCase(folder, model, 'f32', {
    open: async (checkpoint, { maxRows, maxPositions, adapterSlots }) => {
      const sizes = { maxRows, maxPositions, maxChunk: 64, maxLogits: 64 }
      const banks = { slots: adapterSlots + 1, maxRank: 72 }
      return (await openForBench(settings, device, checkpoint, sizes, banks)).runner
    },
  })
  const tolerance = TOLERANCE[settings.dtype]
  const worstRelative = Math.max(...report.rows.map(({ relative }) => relative))
  const sum = (key: 'agreed' | 'wanted'): number => report.rows.reduce((total, row) => total + row[key], 0)
  return {
    model,
    runs: report.rows.length,
    worstRelative,
    tolerance,
    tokensAgreed: sum('agreed'),
    tokensWanted: sum('wanted'),
    notCovered: report.notCovered,
    ok: report.rows.length > 0 && report.notCovered.length === 0 && worstRelative <= tolerance,
  }
}
