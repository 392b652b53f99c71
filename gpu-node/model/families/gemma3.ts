/** Gemma 3, text only: five layers with a window and their own rotary base to one without; norms over each head of q and k. */

import {
  apartAttention,
  decoderFrame,
  eachLayer,
  type Family,
  gatedMlp,
  headNorms,
  languageHead,
  readActivation,
  readLayerTypes,
  readShape,
  rmsNorm,
} from './family.ts'
import { gemmaNorms } from './gemma2.ts'
import { readRopeTables } from './rotary.ts'

/** Layers with a full view follow one another at this distance, where `layer_types` is absent. */
const DEFAULT_PATTERN = 6

export const gemma3: Family = {
  architecture: 'Gemma3ForCausalLM',
  modelType: 'gemma3_text',
  defaults: {
    vocab_size: 262208,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    hidden_activation: 'gelu_pytorch_tanh',
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    query_pre_attn_scalar: 256,
    sliding_window: 4096,
    sliding_window_pattern: DEFAULT_PATTERN,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config, 'hidden_activation')
    // transformers reads `hidden_activation` alone.
    config.skip('hidden_act')
    const bias = config.flag('attention_bias')
    const window = config.optionalSize('sliding_window')
    const pattern = config.size('sliding_window_pattern')
    const types = readLayerTypes(config, shape.layers, (layer) => ((layer + 1) % pattern === 0 ? 'full' : 'sliding'))
    const scale = config.number('query_pre_attn_scalar') ** -0.5
    const frame = decoderFrame(shape)
    const [fullTable, slidingTable] = [0, 1]
    return {
      ...frame,
      embedding: { ...frame.embedding, multiplier: Math.sqrt(shape.hiddenSize) },
      layers: eachLayer(shape.layers, (layer, module) => {
        const sliding = types[layer] === 'sliding'
        return {
          ...gemmaNorms(module, epsilon),
          attention: {
            ...apartAttention(`${module}.self_attn`, shape, { qkv: bias, o: bias }),
            qkNorm: headNorms(`${module}.self_attn`, epsilon, true),
            scale,
            ropeTable: sliding ? slidingTable : fullTable,
            slidingWindow: sliding ? window : undefined,
          },
          mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation),
        }
      }),
      finalNorm: rmsNorm('model.norm', epsilon, true),
      head: {
        ...languageHead(shape, config.flag('tie_word_embeddings')),
        softcap: config.optionalNumber('final_logit_softcapping'),
      },
      ropeTables: readRopeTables(config, shape, limits, { fullTheta: 1_000_000, slidingTheta: 10_000 }),
    }
  },
}
