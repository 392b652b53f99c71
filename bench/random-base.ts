// A decoder of a given shape with random weights, made on the fly: speed does not depend on what the numbers are.

import type { DecoderSpec, LinearSpec, NormSpec } from '../gpu-node/model/decoder-spec.ts'
import { decoderTensors } from '../gpu-node/model/decoder-tensors.ts'
import type { LoraAdapter } from '../gpu-node/model/packed-adapter.ts'
import type { WeightSource } from '../gpu-node/model/runner/weight-source.ts'

export interface Shape {
  layers: number
  hidden: number
  heads: number
  kvHeads: number
  headSize: number
  inner: number
  vocab: number
  positions: number
}

/** SmolLM2-135M. */
export const SHAPE_135M: Shape = {
  layers: 30,
  hidden: 576,
  heads: 9,
  kvHeads: 3,
  headSize: 64,
  inner: 1536,
  vocab: 49_152,
  positions: 1024,
}

/** Qwen2.5-0.5B's, without its biases. */
export const SHAPE_05B: Shape = {
  layers: 24,
  hidden: 896,
  heads: 14,
  kvHeads: 2,
  headSize: 64,
  inner: 4864,
  vocab: 151_936,
  positions: 1024,
}

const FRESH_NUMBERS = 1 << 22

export function randomBase(shape: Shape): WeightSource {
  const decoder = llamaDecoder(shape)
  const tensors = decoderTensors(decoder)
  return {
    decoder,
    readTensor: async (name) => {
      const sizes = tensors.get(name)!
      // By name: each reading gives the same numbers, in whatever order tensors are read.
      const next = randomFloats([...name].reduce((hash, letter) => hash * 31 + letter.charCodeAt(0), 7))
      const values = new Float32Array(sizes.reduce((product, size) => product * size, 1))
      const scale = sizes.length === 1 ? 1 : 1 / Math.sqrt(sizes[1]!)
      const fresh = Math.min(values.length, FRESH_NUMBERS)
      for (let i = 0; i < fresh; i++) {
        values[i] = sizes.length === 1 ? 1 : scale * next()
      }
      // Of billions of numbers most repeat: making them would take longer than what is measured.
      for (let filled = fresh; filled < values.length; filled *= 2) {
        values.copyWithin(filled, 0, Math.min(filled, values.length - filled))
      }
      return values
    },
  }
}

/** Adapts every linear but the head. */
export function randomAdapter(decoder: DecoderSpec, rank: number, seed: number): LoraAdapter {
  const next = randomFloats(seed)
  const floats = (length: number, scale: number): Float32Array => Float32Array.from({ length }, () => scale * next())
  const linears = decoder.layers.flatMap(({ attention, mlp }) => {
    if (attention.qkv.kind !== 'apart' || mlp.kind !== 'gated') {
      throw new TypeError('the bench has Llama shapes only')
    }
    const { q, k, v } = attention.qkv
    return [q, k, v, attention.o, mlp.gate, mlp.up, mlp.down]
  })
  return {
    digest: `random-${rank}-${seed}`,
    maxRank: rank,
    savedModules: [],
    modules: linears.map(({ module, inFeatures, outFeatures }) => ({
      name: module,
      rank,
      loraA: floats(rank * inFeatures, 1 / Math.sqrt(inFeatures)),
      loraB: floats(rank * outFeatures, 0.1),
      scaling: 1,
    })),
  }
}

function llamaDecoder(shape: Shape): DecoderSpec {
  const { hidden, heads, kvHeads, headSize, inner, positions } = shape
  const linear = (module: string, inFeatures: number, outFeatures: number): LinearSpec => ({
    module,
    weight: `${module}.weight`,
    inFeatures,
    outFeatures,
  })
  const norm = (name: string): NormSpec => ({ kind: 'rms', weight: `${name}.weight`, epsilon: 1e-5 })
  return {
    hiddenSize: hidden,
    vocabSize: shape.vocab,
    heads,
    kvHeads,
    headSize,
    maxPositions: positions,
    embedding: { module: 'model.embed_tokens', weight: 'model.embed_tokens.weight' },
    layers: Array.from({ length: shape.layers }, (_, i) => {
      const name = `model.layers.${i}`
      return {
        attentionNorm: norm(`${name}.input_layernorm`),
        attention: {
          qkv: {
            kind: 'apart' as const,
            q: linear(`${name}.self_attn.q_proj`, hidden, heads * headSize),
            k: linear(`${name}.self_attn.k_proj`, hidden, kvHeads * headSize),
            v: linear(`${name}.self_attn.v_proj`, hidden, kvHeads * headSize),
          },
          o: linear(`${name}.self_attn.o_proj`, heads * headSize, hidden),
          ropeTable: 0,
          scale: 1 / Math.sqrt(headSize),
        },
        mlpNorm: norm(`${name}.post_attention_layernorm`),
        mlp: {
          kind: 'gated' as const,
          gate: linear(`${name}.mlp.gate_proj`, hidden, inner),
          up: linear(`${name}.mlp.up_proj`, hidden, inner),
          down: linear(`${name}.mlp.down_proj`, inner, hidden),
          activation: 'silu' as const,
        },
      }
    }),
    finalNorm: norm('model.norm'),
    head: { ...linear('lm_head', hidden, shape.vocab), weight: 'model.embed_tokens.weight', tied: true },
    ropeTables: [ropeTable(headSize, positions)],
  }
}

function ropeTable(rotaryDim: number, positions: number): DecoderSpec['ropeTables'][number] {
  const half = rotaryDim / 2
  const angles = Float32Array.from({ length: positions * half }, (_, i) => {
    const position = Math.floor(i / half)
    return position / 10_000 ** ((2 * (i % half)) / rotaryDim)
  })
  return { rotaryDim, positions, cos: angles.map(Math.cos), sin: angles.map(Math.sin) }
}

/** Uniform in [-1, 1), by a linear congruential generator: fast, and the same numbers in every run. */
function randomFloats(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 31 - 1
  }
}
