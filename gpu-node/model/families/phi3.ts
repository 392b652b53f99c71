/** Phi-3 and Phi-4: q, k and v in one matrix, gate and up in one, longrope, and a part of each head that does not turn. */

import {
  decoderFrame,
  eachLayer,
  type Family,
  languageHead,
  linear,
  readActivation,
  readShape,
  rmsNorm,
} from './family.ts'
import { readRopeTable } from './rotary.ts'

export const phi3: Family = {
  architecture: 'Phi3ForCausalLM',
  modelType: 'phi3',
  defaults: {
    vocab_size: 32064,
    hidden_size: 3072,
    intermediate_size: 8192,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    hidden_act: 'silu',
    max_position_embeddings: 4096,
    original_max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const { hiddenSize, intermediateSize, heads, kvHeads, headSize } = shape
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const slidingWindow = config.optionalSize('sliding_window')
    const tables = [readRopeTable(config, shape, limits, { theta: 10_000, partial: true, yarnMeansLongrope: true })]
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (_, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          qkv: {
            kind: 'fused',
            qkv: linear(`${module}.self_attn.qkv_proj`, hiddenSize, (heads + 2 * kvHeads) * headSize),
          },
          o: linear(`${module}.self_attn.o_proj`, heads * headSize, hiddenSize),
          scale: headSize ** -0.5,
          ropeTable: 0,
          slidingWindow,
        },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: {
          kind: 'gated-fused',
          gateUp: linear(`${module}.mlp.gate_up_proj`, hiddenSize, 2 * intermediateSize),
          down: linear(`${module}.mlp.down_proj`, intermediateSize, hiddenSize),
          activation,
        },
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: tables,
    }
  },
}
