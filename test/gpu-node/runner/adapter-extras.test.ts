import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readPeftAdapter } from '../../../gpu-node/adapters/peft.ts'
import { type Checkpoint, openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { packAdapter } from '../../../gpu-node/model/pack-adapter.ts'
import type { LoraAdapter } from '../../../gpu-node/model/packed-adapter.ts'
import { createOrtRunner } from '../../../gpu-node/model/runner/ort-runner.ts'
import { temporaryDirectory } from '../../support/golden-fixtures.ts'
import { safetensorsFile, tensorsOf } from '../../support/safetensors-file.ts'

const folder = join(import.meta.dirname, '../../fixtures/goldens/qwen3-moe')

/** Some modules have DoRA magnitudes, the others biases. */
function withExtras(adapter: LoraAdapter): LoraAdapter {
  const modules = adapter.modules.map((module, m) => {
    const vector = Float32Array.from({ length: module.loraB.length / module.rank }, (_, i) => 1 + Math.sin(i + m) / 4)
    return m % 2 === 0 ? { ...module, magnitude: vector } : { ...module, loraBias: vector.map((v) => (v - 1) / 8) }
  })
  return { ...adapter, modules }
}

/** The golden mixture with its first four experts: a router of four outputs. */
async function writeSmallMixture(directory: string): Promise<void> {
  await cp(join(folder, 'base'), directory, { recursive: true })
  const config = JSON.parse(await readFile(join(directory, 'config.json'), 'utf8')) as Record<string, unknown>
  await writeFile(join(directory, 'config.json'), JSON.stringify({ ...config, num_local_experts: 4 }))
  const weights = join(directory, 'model.safetensors')
  const kept = [...tensorsOf(await readFile(weights))]
    .filter(([name]) => !/experts\.[4-7]\./.test(name))
    .map(([name, tensor]) => {
      const [rows = 0, ...row] = tensor.shape
      const half = { ...tensor, shape: [rows / 2, ...row], bytes: tensor.bytes.slice(0, tensor.bytes.length / 2) }
      return [name, name.endsWith('mlp.gate.weight') ? half : tensor] as const
    })
  await writeFile(weights, safetensorsFile(new Map(kept)))
}

describe('a mixture of experts, whose router the LoRA kernels do not take', () => {
  let checkpoint: Checkpoint
  let adapter: LoraAdapter
  let directory: Awaited<ReturnType<typeof temporaryDirectory>>
  beforeAll(async () => {
    directory = await temporaryDirectory()
    await writeSmallMixture(directory.path)
    checkpoint = await openCheckpoint(directory.path)
    const read = await readPeftAdapter(join(folder, 'adapters/attention-r4'), checkpoint.spec)
    adapter = withExtras(read.adapter)
  })
  afterAll(async () => {
    await checkpoint.close()
    await directory.remove()
  })

  async function logits(dtype: 'f32' | 'int8', kernels: boolean): Promise<Float32Array> {
    const sizes = { threads: 2, maxRows: 2, maxPositions: 32, adapterSlots: 1 }
    const runner = await createOrtRunner({ checkpoint, dtype, kernels, ...sizes })
    runner.loadAdapter(0, await packAdapter(adapter, checkpoint, runner.adapterLayout))
    for (const [kvRow, adapterSlot] of [0, undefined].entries()) {
      const tokens = Int32Array.of(3, 5, 7)
      runner.prefill({ kvRow, tokens, startPosition: 0, adapterSlot, logits: 'none' })
    }
    const [tokens, positions] = [Int32Array.of(9, 9), Int32Array.of(3, 3)]
    const out = runner.decode({ tokens, positions, adapterSlots: [0, undefined] }).slice()
    runner.dispose()
    return out
  }

  test.each([
    ['f32', 1e-4],
    ['int8', 0.2],
  ] as const)('adapters with DoRA or biases on other matrices run in %s, beside the base', async (dtype, tolerance) => {
    const [mine, right] = [await logits(dtype, true), await logits('f32', false)]
    const deviation = Math.sqrt(right.reduce((sum, value) => sum + value * value, 0) / right.length)
    const worst = right.reduce((most, value, i) => Math.max(most, Math.abs(value - mine[i]!)), 0)
    expect(worst / deviation).toBeLessThan(tolerance)
    expect([...right.subarray(0, 8)]).not.toEqual([...right.subarray(right.length / 2, right.length / 2 + 8)])
  })
})
