/** StarCoder2: LayerNorm, biases, an MLP without gate, a sliding window in every layer where given. */

import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  languageHead,
  layerNorm,
  linear,
  readActivation,
  readShape,
} from './family.ts'
import { readRopeTable } from './rotary.ts'

export const starcoder2: Family = {
  architecture: 'Starcoder2ForCausalLM',
  modelType: 'starcoder2',
  defaults: {
    vocab_size: 49152,
    hidden_size: 3072,
    intermediate_size: 12288,
    num_hidden_layers: 30,
    num_attention_heads: 24,
    num_key_value_heads: 2,
    hidden_act: 'gelu_pytorch_tanh',
    max_position_embeddings: 4096,
    norm_epsilon: 1e-5,
    use_bias: true,
    tie_word_embeddings: true,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('norm_epsilon')
    const activation = readActivation(config)
    const bias = config.flag('use_bias')
    const slidingWindow = config.optionalSize('sliding_window')
    // Left in published configs by the code that trained them.
    config.skip('mlp_type', 'norm_type')
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (_, module) => ({
        attentionNorm: layerNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
          ropeTable: 0,
          slidingWindow,
        },
        mlpNorm: layerNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: {
          kind: 'plain',
          up: linear(`${module}.mlp.c_fc`, shape.hiddenSize, shape.intermediateSize, bias),
          down: linear(`${module}.mlp.c_proj`, shape.intermediateSize, shape.hiddenSize, bias),
          activation,
        },
      })),
      finalNorm: layerNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}
