// A checkpoint directory and PEFT adapters with random bfloat16 weights, on disk, for benches that run whole nodes.

import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { type TensorToWrite, writeSafetensors } from '../gpu-node/formats/safetensors-writer.ts'
import { ConfigFields } from '../gpu-node/model/config-fields.ts'
import { decoderTensors } from '../gpu-node/model/decoder-tensors.ts'
import { familyOf } from '../gpu-node/model/families/registry.ts'
import type { Shape } from './random-base.ts'

/** The demo's tokenizer: ids beyond its 1,024 add nothing to the text, and cost as much to compute. */
export async function writeRandomBase(folder: string, shape: Shape): Promise<void> {
  const config = {
    architectures: ['LlamaForCausalLM'],
    hidden_size: shape.hidden,
    intermediate_size: shape.inner,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    vocab_size: shape.vocab,
    max_position_embeddings: shape.positions,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    bos_token_id: 0,
    eos_token_id: 1,
    tie_word_embeddings: true,
  }
  const fields = new ConfigFields(config, familyOf(config).defaults)
  const decoder = familyOf(config).decoder(fields, { maxPositions: 1, warn: () => {} })
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  const tensors = [...decoderTensors(decoder)].map(([name, sizes], i) => tensorOf(name, sizes, randomCodes(i, sizes)))
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  const demo = resolve(import.meta.dirname, '../models/demo/base')
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
    await copyFile(join(demo, name), join(folder, name))
  }
}

export interface RandomAdapterOptions {
  rank: number
  /** Names of PEFT's `target_modules`. */
  targets: readonly string[]
  seed: number
  dora?: boolean
}

export async function writeRandomAdapter(folder: string, shape: Shape, options: RandomAdapterOptions): Promise<void> {
  const { rank, targets, seed, dora = false } = options
  await mkdir(folder, { recursive: true })
  const config = { peft_type: 'LORA', r: rank, lora_alpha: 2 * rank, target_modules: targets, use_dora: dora }
  await writeFile(join(folder, 'adapter_config.json'), JSON.stringify(config))
  const next = adapterNumbers(seed)
  const tensor = (name: string, sizes: number[]) => tensorOf(name, sizes, next(product(sizes)))
  const tensors = adapted(shape, targets).flatMap(([module, inputs, outputs]) => {
    const path = `base_model.model.${module}`
    const magnitude = dora ? [tensor(`${path}.lora_magnitude_vector`, [outputs])] : []
    return [
      tensor(`${path}.lora_A.weight`, [rank, inputs]),
      tensor(`${path}.lora_B.weight`, [outputs, rank]),
      ...magnitude,
    ]
  })
  await writeSafetensors(join(folder, 'adapter_model.safetensors'), tensors)
}

export const ALL_LINEAR = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const

function adapted(shape: Shape, targets: readonly string[]): [module: string, inputs: number, outputs: number][] {
  const { hidden, heads, kvHeads, headSize, inner } = shape
  const [q, kv] = [heads * headSize, kvHeads * headSize]
  const linears: [string, number, number][] = [
    ['self_attn.q_proj', hidden, q],
    ['self_attn.k_proj', hidden, kv],
    ['self_attn.v_proj', hidden, kv],
    ['self_attn.o_proj', q, hidden],
    ['mlp.gate_proj', hidden, inner],
    ['mlp.up_proj', hidden, inner],
    ['mlp.down_proj', inner, hidden],
  ]
  const wanted = linears.filter(([name]) => targets.includes(name.split('.')[1]!))
  const modules = Array.from({ length: shape.layers }, (_, layer) =>
    wanted.map(([name, ...sizes]): [string, number, number] => [`model.layers.${layer}.${name}`, ...sizes]),
  ).flat()
  return targets.includes('lm_head') ? [...modules, ['lm_head', hidden, shape.vocab]] : modules
}

/** One stream of numbers for all adapters, each from a place of its own: a thousand adapters take no time to make up. */
let pool: Uint16Array | undefined
const POOL = 2 ** 24

function adapterNumbers(seed: number): (length: number) => Uint16Array {
  pool ??= randomCodes(1, [POOL])
  let at = (seed * 7919) % (POOL / 2)
  return (length) => {
    const codes = new Uint16Array(length)
    for (let done = 0; done < length; ) {
      const piece = pool!.subarray(at, at + Math.min(length - done, POOL - at))
      codes.set(piece, done)
      done += piece.length
      at = (at + piece.length) % POOL
    }
    return codes
  }
}

function tensorOf(name: string, shape: readonly number[], codes: Uint16Array): TensorToWrite {
  return { name, dtype: 'BF16', shape, bytes: new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength) }
}

/** ±[1, 2) / 64 in bfloat16: sign and mantissa at random. */
function randomCodes(seed: number, sizes: readonly number[]): Uint16Array {
  const codes = new Uint16Array(product(sizes))
  let state = (seed * 2_654_435_761 + 1) >>> 0
  for (let i = 0; i < codes.length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    codes[i] = ((state >>> 16) & 0x8000) | 0x3c80 | ((state >>> 24) & 0x7f)
  }
  return codes
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((result, size) => result * size, 1)
}
