import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type GoldenOptions, runGoldenCase } from '../../../gpu-node/cli/golden-case.ts'
import type { DeviceFormat } from '../../../gpu-node/model/device/device-form.ts'
import { openDeviceRunner } from '../../../gpu-node/model/device/open-device-runner.ts'

const folder = join(import.meta.dirname, '../../fixtures/goldens')

/** The device's graphs, banks and copies on the processor, with every slot beyond the adapters' free. */
function onProcessor(format: DeviceFormat, spareSlots: number): GoldenOptions {
  return {
    open: (checkpoint, { maxRows, maxPositions, adapterSlots }) =>
      openDeviceRunner({
        checkpoint,
        format,
        target: { kind: 'cpu' },
        threads: 2,
        graphs: false,
        sizes: { maxRows, maxPositions, maxChunk: 7, maxLogits: 5 },
        banks: { slots: adapterSlots + spareSlots, maxRank: 72 },
      }),
  }
}

describe("the device runner gives the reference's logits and greedy tokens, alone and all runs in one batch", () => {
  test.each(['llama', 'gemma2', 'gpt2', 'phi3-longrope', 'qwen3-moe'])('%s in f32', async (name) => {
    const { rows, notCovered } = await runGoldenCase(join(folder, name), name, 'f32', onProcessor('f32', 1))
    expect(notCovered).toEqual([])
    expect(rows.length).toBeGreaterThanOrEqual(6)
    expect(rows.filter((row) => !row.ok)).toEqual([])
  })

  test.each([
    ['f16', 0.03],
    ['int8', 0.25],
    ['int4', 1],
  ] as const)('llama with weights in %s and halves elsewhere is near', async (format, tolerance) => {
    const { rows, notCovered } = await runGoldenCase(join(folder, 'llama'), 'llama', 'int8', onProcessor(format, 0))
    expect(notCovered).toEqual([])
    expect(Math.max(...rows.map((row) => row.relative))).toBeLessThan(tolerance)
  })
})
