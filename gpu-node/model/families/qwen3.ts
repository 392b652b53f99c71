/** Qwen 3: RMS norms over each head of q and k. */

import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  gatedMlp,
  headNorms,
  languageHead,
  readActivation,
  readShape,
  rmsNorm,
} from './family.ts'
import { readQwenWindows } from './qwen-windows.ts'
import { readRopeTable } from './rotary.ts'

export const qwen3: Family = {
  architecture: 'Qwen3ForCausalLM',
  modelType: 'qwen3',
  defaults: {
    vocab_size: 151936,
    hidden_size: 4096,
    intermediate_size: 22016,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    head_dim: 128,
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    sliding_window: 4096,
    max_window_layers: 28,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const bias = config.flag('attention_bias')
    const windows = readQwenWindows(config, shape.layers)
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (layer, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
          qkNorm: headNorms(`${module}.self_attn`, epsilon),
          ropeTable: 0,
          slidingWindow: windows[layer],
        },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation),
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}
