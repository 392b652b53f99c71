/** The demo base in ONNX Runtime with its adapters, packed, and what transformers said it generates. */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { readPeftAdapter } from '../../gpu-node/adapters/peft.ts'
import type { GoldenRunner } from '../../gpu-node/cli/golden-case.ts'
import { type Checkpoint, openCheckpoint } from '../../gpu-node/model/checkpoint.ts'
import { packAdapter } from '../../gpu-node/model/pack-adapter.ts'
import type { PackedAdapter } from '../../gpu-node/model/packed-adapter.ts'
import { createOrtRunner } from '../../gpu-node/model/runner/ort-runner.ts'

export const DEMO_ADAPTERS = ['orders-json', 'orders-sql', 'redact', 'triage', 'pirate'] as const
export type DemoVariant = 'base' | (typeof DEMO_ADAPTERS)[number]
export const DEMO_EOS = 1

export interface DemoGolden {
  prompt_ids: number[][]
  /** By variant and prompt. */
  greedy_ids: Record<DemoVariant, number[][]>
}

export interface DemoModel {
  runner: GoldenRunner
  adapters: ReadonlyMap<DemoVariant, PackedAdapter>
  golden: DemoGolden
}

export interface DemoSizes {
  maxRows: number
  maxPositions: number
  adapterSlots: number
}

/** `open`: another runner than the processor's in f32. */
export async function loadDemoModel(
  sizes: DemoSizes,
  open = (checkpoint: Checkpoint): Promise<GoldenRunner> =>
    createOrtRunner({ ...sizes, checkpoint, dtype: 'f32', threads: 2 }),
): Promise<DemoModel> {
  const folder = fileURLToPath(new URL('../../models/demo/', import.meta.url))
  const checkpoint = await openCheckpoint(`${folder}base`)
  const runner = await open(checkpoint)
  const adapters = new Map<DemoVariant, PackedAdapter>()
  for (const name of DEMO_ADAPTERS) {
    const { adapter } = await readPeftAdapter(`${folder}adapters/${name}`, checkpoint.spec)
    adapters.set(name, await packAdapter(adapter, checkpoint, runner.adapterLayout))
  }
  const golden: DemoGolden = JSON.parse(readFileSync(`${folder}golden.json`, 'utf8'))
  return { runner, adapters, golden }
}
