/** Gemma 2: norms of 1 + w before and after both branches, softcaps, a window in every other layer. */

import type { LayerSpec } from '../decoder-spec.ts'
import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  gatedMlp,
  languageHead,
  readActivation,
  readLayerTypes,
  readShape,
  rmsNorm,
} from './family.ts'
import { readRopeTable } from './rotary.ts'

export const gemma2: Family = {
  architecture: 'Gemma2ForCausalLM',
  modelType: 'gemma2',
  defaults: {
    vocab_size: 256000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    hidden_activation: 'gelu_pytorch_tanh',
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    query_pre_attn_scalar: 256,
    sliding_window: 4096,
    final_logit_softcapping: 30,
    attn_logit_softcapping: 50,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config, 'hidden_activation')
    // Published configs carry it too; transformers reads `hidden_activation` alone. `cache_implementation` is generation's.
    config.skip('hidden_act')
    const bias = config.flag('attention_bias')
    const window = config.optionalSize('sliding_window')
    const types = readLayerTypes(config, shape.layers, (layer) => (layer % 2 === 0 ? 'sliding' : 'full'))
    const scale = config.number('query_pre_attn_scalar') ** -0.5
    const softcap = config.optionalNumber('attn_logit_softcapping')
    const frame = decoderFrame(shape)
    return {
      ...frame,
      embedding: { ...frame.embedding, multiplier: Math.sqrt(shape.hiddenSize) },
      layers: eachLayer(shape.layers, (layer, module) => ({
        ...gemmaNorms(module, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
          scale,
          softcap,
          ropeTable: 0,
          slidingWindow: types[layer] === 'sliding' ? window : undefined,
        },
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation),
      })),
      finalNorm: rmsNorm('model.norm', epsilon, true),
      head: {
        ...languageHead(shape, config.flag('tie_word_embeddings')),
        softcap: config.optionalNumber('final_logit_softcapping'),
      },
      ropeTables: [readRopeTable(config, shape, limits, { theta: 10_000 })],
    }
  },
}

/** The four norms of a layer of Gemma 2 and 3. */
export function gemmaNorms(
  module: string,
  epsilon: number,
): Pick<LayerSpec, 'attentionNorm' | 'postAttentionNorm' | 'mlpNorm' | 'postMlpNorm'> {
  const norm = (name: string) => rmsNorm(`${module}.${name}`, epsilon, true)
  return {
    attentionNorm: norm('input_layernorm'),
    postAttentionNorm: norm('post_attention_layernorm'),
    mlpNorm: norm('pre_feedforward_layernorm'),
    postMlpNorm: norm('post_feedforward_layernorm'),
  }
}
