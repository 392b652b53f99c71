/** Mistral: Llama with a sliding window in every layer. */

import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  gatedMlp,
  languageHead,
  readActivation,
  readShape,
  rmsNorm,
} from './family.ts'
import { readRopeTable } from './rotary.ts'

export const mistral: Family = {
  architecture: 'MistralForCausalLM',
  modelType: 'mistral',
  defaults: {
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    hidden_act: 'silu',
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-6,
    sliding_window: 4096,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const slidingWindow = config.optionalSize('sliding_window')
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (_, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: { ...apartAttention(`${module}.self_attn`, shape), ropeTable: 0, slidingWindow },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation),
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}
