/**
 * Load of a 0.5B checkpoint (bf16, random weights, made on the fly in a temporary folder) to the first token: quantised anew, and
 * from the cache of an earlier start; beside a plain read of the same bytes, all in one run. `npx tsx bench/load.ts [rounds]`.
 */

import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TensorToWrite, writeSafetensors } from '../gpu-node/formats/safetensors-writer.ts'
import { openCheckpoint } from '../gpu-node/model/checkpoint.ts'
import { ConfigFields } from '../gpu-node/model/config-fields.ts'
import { decoderTensors } from '../gpu-node/model/decoder-tensors.ts'
import { familyOf } from '../gpu-node/model/families/registry.ts'
import { createOrtRunner } from '../gpu-node/model/runner/ort-runner.ts'

/** Qwen2.5-0.5B's sizes. */
const CONFIG = {
  architectures: ['Qwen2ForCausalLM'],
  hidden_size: 896,
  intermediate_size: 4864,
  num_hidden_layers: 24,
  num_attention_heads: 14,
  num_key_value_heads: 2,
  vocab_size: 151_936,
  max_position_embeddings: 32_768,
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  tie_word_embeddings: true,
}
const MAX_POSITIONS = 2048
/** Of each start. */
const filed: number[] = []

const rounds = Number(process.argv[2] ?? 3)
const folder = await mkdtemp(join(tmpdir(), 'ringlet-load-'))
try {
  const weightFile = await writeCheckpoint()
  console.log(`${(weightFile.bytes / 1e6).toFixed(0)} MB of bf16 weights; ms, the best of ${rounds}`)
  const first: number[] = []
  const again: number[] = []
  const raw: number[] = []
  const kept: number[] = []
  for (let round = 0; round < rounds; round++) {
    await rm(join(folder, 'cache'), { recursive: true, force: true })
    raw.push(await rawRead(weightFile.path))
    first.push(await loadToFirstToken())
    kept.push(filed.at(-1)!)
    again.push(await loadToFirstToken())
  }
  const best = (list: number[]) => Math.min(...list)
  const row = (name: string, list: number[]) => {
    const spread = list.map((ms) => ms.toFixed(0)).join(' ')
    const ratio = (best(list) / best(raw)).toFixed(2)
    console.log(`${name.padEnd(34)} ${best(list).toFixed(0).padStart(6)}   ${ratio} × raw read   (${spread})`)
  }
  row('raw read of the weight file', raw)
  row('to the first token, quantised anew', first)
  row('until that is on the disk, too', kept)
  row('to the first token, from the cache', again)
} finally {
  await rm(folder, { recursive: true })
}

async function writeCheckpoint(): Promise<{ path: string; bytes: number }> {
  const fields = new ConfigFields(CONFIG, familyOf(CONFIG).defaults)
  const decoder = familyOf(CONFIG).decoder(fields, { maxPositions: 1, warn: () => {} })
  const tensors = [...decoderTensors(decoder)].map(([name, shape]): TensorToWrite => {
    const elements = shape.reduce((product, size) => product * size, 1)
    return { name, dtype: 'BF16', shape, bytes: randomBfloat16(elements) }
  })
  await writeFile(join(folder, 'config.json'), JSON.stringify(CONFIG))
  const path = join(folder, 'model.safetensors')
  await writeSafetensors(path, tensors)
  return { path, bytes: tensors.reduce((sum, { bytes }) => sum + bytes.byteLength, 0) }
}

/** ±[1, 2) / 64: sign and mantissa at random. */
function randomBfloat16(elements: number): Uint8Array {
  const codes = new Uint16Array(elements)
  let state = 1
  for (let i = 0; i < elements; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    codes[i] = ((state >>> 16) & 0x8000) | 0x3c80 | ((state >>> 24) & 0x7f)
  }
  return new Uint8Array(codes.buffer)
}

async function rawRead(path: string): Promise<number> {
  const chunk = new Uint8Array(16 * 1024 * 1024)
  const handle = await open(path)
  const start = performance.now()
  while ((await handle.read(chunk)).bytesRead > 0) {
    // The bytes are wanted in memory only.
  }
  const ms = performance.now() - start
  await handle.close()
  return ms
}

async function loadToFirstToken(): Promise<number> {
  const start = performance.now()
  const checkpoint = await openCheckpoint(folder, { maxPositions: MAX_POSITIONS })
  const { spec, stamp } = checkpoint
  const runner = await createOrtRunner({
    checkpoint,
    dtype: 'int8',
    threads: 2,
    maxRows: 1,
    maxPositions: MAX_POSITIONS,
    adapterSlots: 1,
    weightCache: { folder: join(folder, 'cache'), baseDigest: spec.baseDigest, stamp },
  })
  runner.prefill({ kvRow: 0, tokens: Int32Array.of(1), startPosition: 0, adapterSlot: undefined, logits: 'last' })
  const ms = performance.now() - start
  // What the next start finds is written behind.
  await runner.filed
  filed.push(performance.now() - start)
  runner.dispose()
  await checkpoint.close()
  return ms
}
