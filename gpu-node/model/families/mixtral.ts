/** Mixtral: Mistral with experts, `w1` the gate, `w3` up, `w2` down. */

import { invalid } from '../config-fields.ts'
import {
  apartAttention,
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

export const mixtral: Family = {
  architecture: 'MixtralForCausalLM',
  modelType: 'mixtral',
  defaults: {
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    hidden_act: 'silu',
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-5,
    num_experts_per_tok: 2,
    num_local_experts: 8,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const { hiddenSize, intermediateSize } = shape
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const slidingWindow = config.optionalSize('sliding_window')
    const experts = config.size('num_local_experts')
    const expertsPerToken = config.size('num_experts_per_tok')
    if (expertsPerToken > experts) {
      throw invalid('num_experts_per_tok', expertsPerToken, `at most num_local_experts = ${experts}`)
    }
    // Noise on the router's input, in training only.
    config.skip('router_jitter_noise')
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (_, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: { ...apartAttention(`${module}.self_attn`, shape), ropeTable: 0, slidingWindow },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: {
          kind: 'moe',
          router: linear(`${module}.block_sparse_moe.gate`, hiddenSize, experts),
          experts: Array.from({ length: experts }, (_, expert) => {
            const name = `${module}.block_sparse_moe.experts.${expert}`
            return {
              gate: linear(`${name}.w1`, hiddenSize, intermediateSize),
              up: linear(`${name}.w3`, hiddenSize, intermediateSize),
              down: linear(`${name}.w2`, intermediateSize, hiddenSize),
            }
          }),
          expertsPerToken,
          normalise: true,
          activation,
        },
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 1_000_000 })],
    }
  },
}
