/**
 * How long a disk-warm adapter takes until it is usable (read, digest, checks, packing, lease), beside a raw read of its file.
 * `tsx bench/adapters-load.ts [rounds]`; both in turn, so that the machine's other load meets both.
 */

import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { AdaptedSelection } from '../gpu-node/adapters/adapter-store.ts'
import { openAdapterStore } from '../gpu-node/adapters/store/open-store.ts'
import { openCheckpoint } from '../gpu-node/model/checkpoint.ts'
import { adapterLayout } from '../gpu-node/model/pack-adapter.ts'
import type { AdapterLayout } from '../gpu-node/model/packed-adapter.ts'

/** The 135-million-parameter model of docs/design: rank 16 on all linear layers is 19.5 MB in float32. */
const SHAPE = { hidden: 576, layers: 30, heads: 9, kvHeads: 3, intermediate: 1536, vocab: 49_152 }
const RANK = 16
const CALLER = { tenantId: 'bench', tokens: {} }

const rounds = Number(process.argv[2] ?? 15)
const directory = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
try {
  await writeBase(join(directory, 'base'))
  const checkpoint = await openCheckpoint(join(directory, 'base'), { maxPositions: 1 })
  const { decoder } = checkpoint
  await checkpoint.close()
  for (const dtype of ['F32', 'BF16'] as const) {
    await writeAdapter(join(directory, 'adapters', dtype), dtype)
  }
  for (const weights of ['f32', 'int8'] as const) {
    const cold = await openStore(adapterLayout(weights, decoder), 2 ** 30)
    const lease = await cold.acquire(select('F32'), CALLER)
    const { loadMs } = await cold.acquire(select('BF16'), CALLER)
    console.log(`${weights} base: first load, checked and packed by a loader thread: ${loadMs.toFixed(0)} ms`)
    await cold.close()
    // Room for one: each asked for after the other has to come from disk.
    const warm = await openStore(adapterLayout(weights, decoder), lease.bytes * 1.5)
    const times = {
      F32: { raw: [] as number[], usable: [] as number[] },
      BF16: { raw: [] as number[], usable: [] as number[] },
    }
    for (let round = 0; round <= rounds; round++) {
      for (const dtype of ['F32', 'BF16'] as const) {
        times[dtype].raw.push(await timed(() => readFile(weightsOf(dtype))))
        times[dtype].usable.push(
          await timed(async () => {
            const held = await warm.acquire(select(dtype), CALLER)
            if (held.cacheTier !== 'disk') {
              throw new Error(`expected a load from disk, got ${held.cacheTier}`)
            }
            held.release()
          }),
        )
      }
    }
    await warm.close()
    for (const [dtype, { raw, usable }] of Object.entries(times)) {
      const [rawMs, usableMs] = [median(raw), median(usable)]
      const limit = 2 * rawMs + 5
      console.log(
        `${weights} base, ${dtype} adapter: raw read ${rawMs.toFixed(1)} ms, usable ${usableMs.toFixed(1)} ms, ` +
          `2 × raw + 5 ms is ${limit.toFixed(1)} ms: ratio ${(usableMs / limit).toFixed(2)}`,
      )
    }
  }
} finally {
  await rm(directory, { recursive: true, force: true })
}

function openStore(layout: AdapterLayout, ramBytes: number) {
  return openAdapterStore({
    base: { directory: join(directory, 'base'), adapterLayout: layout },
    cacheDirectory: join(directory, 'cache', layout),
    diskBytes: 2 ** 30,
    ramBytes,
    hub: { endpoint: 'http://127.0.0.1:1', offline: true },
    predibase: { endpoint: 'http://127.0.0.1:1' },
    s3: { allowedBuckets: [] },
    adapterRoots: [join(directory, 'adapters')],
  })
}

function select(id: string): AdaptedSelection {
  return { kind: 'single', ref: { source: 'local', id } }
}

function weightsOf(dtype: string): string {
  return join(directory, 'adapters', dtype, 'adapter_model.safetensors')
}

async function timed(run: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await run()
  return performance.now() - startedAt
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!
}

/** Weights of zeros in a file without blocks: nothing here computes with them. */
async function writeBase(path: string): Promise<void> {
  const { hidden, layers, heads, kvHeads, intermediate, vocab } = SHAPE
  await mkdir(path, { recursive: true })
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    intermediate_size: intermediate,
    vocab_size: vocab,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
  }
  await writeFile(join(path, 'config.json'), JSON.stringify(config))
  const tensors: [string, number[]][] = [
    ['model.embed_tokens.weight', [vocab, hidden]],
    ['model.norm.weight', [hidden]],
  ]
  for (let layer = 0; layer < layers; layer++) {
    tensors.push([`model.layers.${layer}.input_layernorm.weight`, [hidden]])
    tensors.push([`model.layers.${layer}.post_attention_layernorm.weight`, [hidden]])
    for (const [name, outFeatures, inFeatures] of linears()) {
      tensors.push([`model.layers.${layer}.${name}.weight`, [outFeatures, inFeatures]])
    }
  }
  await writeSafetensors(join(path, 'model.safetensors'), tensors, 'BF16', undefined)
}

function linears(): [name: string, outFeatures: number, inFeatures: number][] {
  const { hidden, heads, kvHeads, intermediate } = SHAPE
  const kv = (hidden / heads) * kvHeads
  return [
    ['self_attn.q_proj', hidden, hidden],
    ['self_attn.k_proj', kv, hidden],
    ['self_attn.v_proj', kv, hidden],
    ['self_attn.o_proj', hidden, hidden],
    ['mlp.gate_proj', intermediate, hidden],
    ['mlp.up_proj', intermediate, hidden],
    ['mlp.down_proj', hidden, intermediate],
  ]
}

async function writeAdapter(path: string, dtype: 'F32' | 'BF16'): Promise<void> {
  await mkdir(path, { recursive: true })
  const modules = linears().map(([name]) => name.split('.')[1])
  const config = { peft_type: 'LORA', r: RANK, lora_alpha: 2 * RANK, target_modules: modules }
  await writeFile(join(path, 'adapter_config.json'), JSON.stringify(config))
  const tensors: [string, number[]][] = []
  for (let layer = 0; layer < SHAPE.layers; layer++) {
    for (const [name, outFeatures, inFeatures] of linears()) {
      const module = `base_model.model.model.layers.${layer}.${name}`
      tensors.push([`${module}.lora_A.weight`, [RANK, inFeatures]], [`${module}.lora_B.weight`, [outFeatures, RANK]])
    }
  }
  await writeSafetensors(join(path, 'adapter_model.safetensors'), tensors, dtype, (bytes) => {
    // Small finite numbers in either format: exponents around 1/64.
    const size = dtype === 'F32' ? 4 : 2
    for (let at = 0; at < bytes.length; at++) {
      bytes[at] = at % size === size - 1 ? 0x3c : (at * 2_654_435_761) >>> 24
    }
  })
}

async function writeSafetensors(
  path: string,
  tensors: [string, number[]][],
  dtype: 'F32' | 'BF16',
  fill: ((bytes: Uint8Array) => void) | undefined,
): Promise<void> {
  const header: Record<string, unknown> = {}
  let at = 0
  for (const [name, shape] of tensors) {
    const bytes = shape.reduce((product, size) => product * size, dtype === 'F32' ? 4 : 2)
    header[name] = { dtype, shape, data_offsets: [at, at + bytes] }
    at += bytes
  }
  const json = JSON.stringify(header)
  const text = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(text.length))
  const file = await open(path, 'w')
  try {
    await file.write(Buffer.concat([length, text]))
    if (fill === undefined) {
      await file.truncate(8 + text.length + at)
    } else {
      const data = new Uint8Array(at)
      fill(data)
      await file.write(data)
    }
  } finally {
    await file.close()
  }
}
