import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type GoldenOptions, runGoldenCase } from '../../../gpu-node/cli/golden-case.ts'
import type { DeviceFloats, DeviceFormat } from '../../../gpu-node/model/device/device-form.ts'
import { openDeviceRunner } from '../../../gpu-node/model/device/open-device-runner.ts'

const folder = join(import.meta.dirname, '../../fixtures/goldens')

/** The device's graphs, banks and copies on the processor, with every slot beyond the adapters' free. */
function onProcessor(format: DeviceFormat, spareSlots: number, floats?: DeviceFloats): GoldenOptions {
  return {
    open: (checkpoint, { maxRows, maxPositions, adapterSlots }) =>
      openDeviceRunner({
        checkpoint,
        format,
        ...(floats === undefined ? {} : { floats }),
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

  test('llama in halves: tokens as in f32, logits near', async () => {
    const { rows, notCovered } = await runGoldenCase(join(folder, 'llama'), 'llama', 'int8', onProcessor('f16', 0))
    expect(notCovered).toEqual([])
    expect(rows.filter((row) => row.agreed < row.wanted)).toEqual([])
    expect(Math.max(...rows.map((row) => row.relative))).toBeLessThan(0.03)
  })

  // Activations in f32: on the processor ONNX Runtime 1.29 computes MatMulNBits between operators without a half kernel wrongly.
  test('llama in int8 is near', async () => {
    const options = onProcessor('int8', 0, 'float32')
    const { rows, notCovered } = await runGoldenCase(join(folder, 'llama'), 'llama', 'int8', options)
    expect(notCovered).toEqual([])
    expect(Math.max(...rows.map((row) => row.relative))).toBeLessThan(0.4)
  })

  test('llama in int8 and halves is near on the base', async () => {
    const { rows } = await runGoldenCase(join(folder, 'llama'), 'llama', 'int8', onProcessor('int8', 0))
    const base = rows.filter((row) => row.run.startsWith('base/') && row.mode === 'alone')
    expect(base.length).toBe(3)
    expect(Math.max(...base.map((row) => row.relative))).toBeLessThan(0.25)
  })
})
