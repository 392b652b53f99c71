/** GPT-2: matrices stored `[in, out]`, learned positions, LayerNorm, biases everywhere. */

import { invalid } from '../config-fields.ts'
import type { LinearSpec } from '../decoder-spec.ts'
import { type Family, languageHead, layerNorm, linear, readActivation } from './family.ts'

export const gpt2: Family = {
  architecture: 'GPT2LMHeadModel',
  modelType: 'gpt2',
  defaults: {
    vocab_size: 50257,
    n_positions: 1024,
    n_embd: 768,
    n_layer: 12,
    n_head: 12,
    activation_function: 'gelu_new',
    layer_norm_epsilon: 1e-5,
    tie_word_embeddings: true,
    scale_attn_weights: true,
  },
  decoder(config, limits) {
    const hiddenSize = config.size('n_embd')
    const heads = config.size('n_head')
    const headSize = hiddenSize / heads
    if (!Number.isInteger(headSize)) {
      throw invalid('n_embd', hiddenSize, `a multiple of n_head = ${heads}`)
    }
    const innerSize = config.optionalSize('n_inner') ?? 4 * hiddenSize
    const modelPositions = config.size('n_positions')
    const vocabSize = config.size('vocab_size')
    const epsilon = config.number('layer_norm_epsilon')
    const activation = readActivation(config, 'activation_function')
    const scale = config.flag('scale_attn_weights') ? headSize ** -0.5 : 1
    const byLayer = config.flag('scale_attn_by_inverse_layer_idx')
    // The order of the same operations, and heads of other tasks.
    config.skip('reorder_and_upcast_attn', 'n_ctx', 'summary_type', 'summary_use_proj', 'summary_activation')
    config.skip('summary_proj_to_labels', 'summary_first_dropout')
    return {
      hiddenSize,
      vocabSize,
      heads,
      kvHeads: heads,
      headSize,
      maxPositions: Math.min(modelPositions, limits.maxPositions),
      embedding: {
        module: 'transformer.wte',
        weight: 'transformer.wte.weight',
        positionWeight: 'transformer.wpe.weight',
        positionRows: modelPositions,
      },
      layers: Array.from({ length: config.size('n_layer') }, (_, layer) => {
        const module = `transformer.h.${layer}`
        return {
          attentionNorm: layerNorm(`${module}.ln_1`, epsilon),
          attention: {
            qkv: { kind: 'fused', qkv: conv1d(`${module}.attn.c_attn`, hiddenSize, 3 * hiddenSize) },
            o: conv1d(`${module}.attn.c_proj`, hiddenSize, hiddenSize),
            scale: byLayer ? scale / (layer + 1) : scale,
          },
          mlpNorm: layerNorm(`${module}.ln_2`, epsilon),
          mlp: {
            kind: 'plain',
            up: conv1d(`${module}.mlp.c_fc`, hiddenSize, innerSize),
            down: conv1d(`${module}.mlp.c_proj`, innerSize, hiddenSize),
            activation,
          },
        }
      }),
      finalNorm: layerNorm('transformer.ln_f', epsilon),
      head: languageHead({ hiddenSize, vocabSize }, config.flag('tie_word_embeddings'), 'transformer.wte'),
      ropeTables: [],
    }
  },
}

function conv1d(module: string, inFeatures: number, outFeatures: number): LinearSpec {
  return { ...linear(module, inFeatures, outFeatures, true), transposed: true }
}
