/** Qwen 3 with experts: some layers have one dense MLP instead (`mlp_only_layers`, `decoder_sparse_step`). */

import { type ConfigFields, invalid } from '../config-fields.ts'
import type { MlpSpec } from '../decoder-spec.ts'
import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  gatedMlp,
  headNorms,
  languageHead,
  linear,
  readActivation,
  readShape,
  rmsNorm,
} from './family.ts'
import { readRopeTable } from './rotary.ts'

export const qwen3Moe: Family = {
  architecture: 'Qwen3MoeForCausalLM',
  modelType: 'qwen3_moe',
  defaults: {
    vocab_size: 151936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    sliding_window: 4096,
    decoder_sparse_step: 1,
    moe_intermediate_size: 768,
    num_experts_per_tok: 8,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const bias = config.flag('attention_bias')
    const window = config.optionalSize('sliding_window')
    const slidingWindow = config.flag('use_sliding_window') ? window : undefined
    // Written by older releases; with one mask for all layers it has no effect.
    config.skip('max_window_layers')
    const mlp = readMlp(config, shape.layers, shape.hiddenSize, shape.intermediateSize)
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (layer, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
          qkNorm: headNorms(`${module}.self_attn`, epsilon),
          ropeTable: 0,
          slidingWindow,
        },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: mlp(layer, `${module}.mlp`),
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}

function readMlp(
  config: ConfigFields,
  layers: number,
  hiddenSize: number,
  intermediateSize: number,
): (layer: number, module: string) => MlpSpec {
  const activation = readActivation(config)
  // Two names for one number; transformers 5 writes the second.
  const experts = config.optionalSize('num_experts') ?? config.optionalSize('num_local_experts') ?? 128
  const expertsPerToken = config.size('num_experts_per_tok')
  if (expertsPerToken > experts) {
    throw invalid('num_experts_per_tok', expertsPerToken, `at most the number of experts, ${experts}`)
  }
  const expertSize = config.size('moe_intermediate_size')
  const normalise = config.flag('norm_topk_prob')
  const step = config.size('decoder_sparse_step')
  const dense = config.raw('mlp_only_layers') ?? []
  if (!Array.isArray(dense) || !dense.every((layer) => Number.isInteger(layer) && layer >= 0 && layer < layers)) {
    throw invalid('mlp_only_layers', dense, `a list of layers below ${layers}`)
  }
  return (layer, module) =>
    dense.includes(layer) || (layer + 1) % step !== 0
      ? gatedMlp(module, hiddenSize, intermediateSize, activation)
      : {
          kind: 'moe',
          router: linear(`${module}.gate`, hiddenSize, experts),
          experts: Array.from({ length: experts }, (_, expert) => ({
            gate: linear(`${module}.experts.${expert}.gate_proj`, hiddenSize, expertSize),
            up: linear(`${module}.experts.${expert}.up_proj`, hiddenSize, expertSize),
            down: linear(`${module}.experts.${expert}.down_proj`, expertSize, hiddenSize),
          })),
          expertsPerToken,
          normalise,
          activation,
        }
}
