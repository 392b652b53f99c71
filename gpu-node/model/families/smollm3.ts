/** SmolLM3: every fourth layer has no rotary embedding, and a sliding window where that is switched on. */

import { invalid } from '../config-fields.ts'
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

export const smollm3: Family = {
  architecture: 'SmolLM3ForCausalLM',
  modelType: 'smollm3',
  defaults: {
    vocab_size: 128256,
    hidden_size: 2048,
    intermediate_size: 11008,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
    no_rope_layer_interval: 4,
  },
  decoder(config, limits) {
    const shape = readShape(config, limits)
    const epsilon = config.number('rms_norm_eps')
    const activation = readActivation(config)
    const attentionBias = config.flag('attention_bias')
    const mlpBias = config.flag('mlp_bias')
    const interval = config.size('no_rope_layer_interval')
    const turns = config.list('no_rope_layers', shape.layers)?.map(toFlag)
    const turnsIn = (layer: number) => turns?.[layer] ?? (layer + 1) % interval !== 0
    const window = config.optionalSize('sliding_window')
    const sliding = config.flag('use_sliding_window') ? window : undefined
    const types = readLayerTypes(config, shape.layers, (layer) =>
      sliding !== undefined && !turnsIn(layer) ? 'sliding' : 'full',
    )
    if (sliding === undefined && types.includes('sliding')) {
      throw invalid('layer_types', 'sliding_attention', 'full_attention while use_sliding_window is false')
    }
    return {
      ...decoderFrame(shape),
      layers: eachLayer(shape.layers, (layer, module) => ({
        attentionNorm: rmsNorm(`${module}.input_layernorm`, epsilon),
        attention: {
          ...apartAttention(`${module}.self_attn`, shape, { qkv: attentionBias, o: attentionBias }),
          ropeTable: turnsIn(layer) ? 0 : undefined,
          slidingWindow: types[layer] === 'sliding' ? sliding : undefined,
        },
        mlpNorm: rmsNorm(`${module}.post_attention_layernorm`, epsilon),
        mlp: gatedMlp(`${module}.mlp`, shape.hiddenSize, shape.intermediateSize, activation, mlpBias),
      })),
      finalNorm: rmsNorm('model.norm', epsilon),
      head: languageHead(shape, config.flag('tie_word_embeddings')),
      ropeTables: [readRopeTable(config, shape, limits, { theta: 2_000_000 })],
    }
  },
}

/** `no_rope_layers` says 1 for a layer that does turn. */
function toFlag(value: unknown): boolean {
  if (value !== 0 && value !== 1 && typeof value !== 'boolean') {
    throw invalid('no_rope_layers', value, 'a list of 0 and 1')
  }
  return Boolean(value)
}
