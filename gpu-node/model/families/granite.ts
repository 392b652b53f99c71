/** Granite 3: Llama with multipliers on embedding, attention, branches and logits. */

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

export const granite: Family = {
  architecture: 'GraniteForCausalLM',
  modelType: 'granite',
  defaults: {
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    hidden_act: 'silu',
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    embedding_multiplier: 1,
    logits_scaling: 1,
    residual_multiplier: 1,
    attention_multiplier: 1,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const attentionBias = config.flag('attention_bias')
    const mlpBias = config.flag('mlp_bias')
    const scale = config.number('attention_multiplier')
    const residualMultiplier = config.number('residual_multiplier')
    const frame = decoderFrame(shape)
    return {
      ...frame,
      embedding: { ...frame.embedding, multiplier: config.number('embedding_multiplier') },
      layers: eachLayer(shape.layers, (_, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: attentionBias, o: attentionBias }),
          scale,
          ropeTable: 0,
        },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation, mlpBias),
        residualMultiplier,
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: {
        ...languageHead(shape, config.flag('tie_word_embeddings')),
        divisor: config.number('logits_scaling'),
      },
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}
