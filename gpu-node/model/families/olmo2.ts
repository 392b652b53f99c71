/** OLMo 2: norms behind the branches instead of before them, and over the whole projections of q and k. */

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
import { readRopeTable } from './rotary.ts'

export const olmo2: Family = {
  architecture: 'Olmo2ForCausalLM',
  modelType: 'olmo2',
  defaults: {
    vocab_size: 50304,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    hidden_act: 'silu',
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const bias = config.flag('attention_bias')
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (_, module) => ({
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
          qkNorm: { ...headNorms(`${module}.self_attn`, epsilon), perHead: false },
          ropeTable: 0,
        },
        postAttentionNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation),
        postMlpNorm: rmsNorm(`${module}.post_feedforward_layernorm`, epsilon),
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}
