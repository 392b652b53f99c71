import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type GoldenOptions, runGoldenCase } from '../../../gpu-node/cli/golden-case.ts'
import { openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
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

describe('quantised weights are kept for the next start', () => {
  const directory = join(folder, 'llama', 'base')
  /** Opens, and says whether matrices were read from the checkpoint. */
  async function open(cache: string, format: DeviceFormat): Promise<{ logits: Float32Array; fromCheckpoint: boolean }> {
    const checkpoint = await openCheckpoint(directory)
    let fromCheckpoint = false
    const watched = {
      decoder: checkpoint.decoder,
      readTensor: (name: string) => {
        fromCheckpoint ||= name.includes('mlp')
        return checkpoint.readTensor(name)
      },
    }
    const { spec, stamp } = checkpoint
    const runner = await openDeviceRunner({
      checkpoint: watched,
      format,
      floats: 'float32',
      target: { kind: 'cpu' },
      threads: 2,
      graphs: false,
      sizes: { maxRows: 1, maxPositions: 32, maxChunk: 7, maxLogits: 5 },
      banks: { slots: 1, maxRank: 4 },
      weightCache: { folder: cache, baseDigest: spec.baseDigest, stamp },
    })
    const tokens = Int32Array.of(5, 6, 7)
    const chunk = { kvRow: 0, tokens, startPosition: 0, adapterSlot: undefined, logits: 'last' as const }
    const logits = runner.prefill(chunk).slice()
    runner.dispose()
    await checkpoint.close()
    return { logits, fromCheckpoint }
  }

  test.each(['int8', 'int4'] as const)('%s: read back, and made anew where the file is damaged', async (format) => {
    const cache = await mkdtemp(join(tmpdir(), 'ringlet-device-weights-'))
    const first = await open(cache, format)
    expect(first.fromCheckpoint).toBe(true)
    const second = await open(cache, format)
    expect(second).toEqual({ logits: first.logits, fromCheckpoint: false })
    const [file] = (await readdir(cache)).filter((name) => name.endsWith('.safetensors'))
    const bytes = await readFile(join(cache, file!))
    bytes[bytes.length >> 1]! ^= 1
    await writeFile(join(cache, file!), bytes)
    expect(await open(cache, format)).toEqual(first)
    await rm(cache, { recursive: true })
  })
})
