import { describe, expect, test } from 'vitest'
import { ConfigFields } from '../../../gpu-node/model/config-fields.ts'
import { decoderModules, decoderTensors } from '../../../gpu-node/model/decoder-tensors.ts'
import { familyOf } from '../../../gpu-node/model/families/registry.ts'

function describeModel(config: Record<string, unknown>) {
  const family = familyOf(config)
  const fields = new ConfigFields(config, family.defaults)
  const warnings: string[] = []
  const decoder = family.decoder(fields, { maxPositions: 64, warn: (text) => warnings.push(text) })
  return { decoder, warnings, unknown: fields.finish() }
}

/** The config.json of published checkpoints, as far as it describes the model. */
const llama32 = {
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0,
  head_dim: 64,
  hidden_act: 'silu',
  hidden_size: 2048,
  initializer_range: 0.02,
  intermediate_size: 8192,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 16,
  num_key_value_heads: 8,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: {
    factor: 32,
    high_freq_factor: 4,
    low_freq_factor: 1,
    original_max_position_embeddings: 8192,
    rope_type: 'llama3',
  },
  rope_theta: 500000,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  transformers_version: '4.45.0',
  use_cache: true,
  vocab_size: 128256,
}
const llama2 = {
  architectures: ['LlamaForCausalLM'],
  hidden_act: 'silu',
  hidden_size: 4096,
  intermediate_size: 11008,
  max_position_embeddings: 4096,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 32,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  tie_word_embeddings: false,
  vocab_size: 32000,
}
const smollm2 = {
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  hidden_act: 'silu',
  hidden_size: 576,
  intermediate_size: 1536,
  is_llama_config: true,
  max_position_embeddings: 8192,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: 9,
  num_hidden_layers: 30,
  num_key_value_heads: 3,
  rms_norm_eps: 1e-5,
  rope_interleaved: false,
  rope_scaling: null,
  rope_theta: 100000,
  tie_word_embeddings: true,
  'transformers.js_config': { kv_cache_dtype: { q4f16: 'float16' } },
  vocab_size: 49152,
}
const mistral7b = {
  architectures: ['MistralForCausalLM'],
  hidden_act: 'silu',
  hidden_size: 4096,
  intermediate_size: 14336,
  max_position_embeddings: 32768,
  model_type: 'mistral',
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  sliding_window: 4096,
  tie_word_embeddings: false,
  vocab_size: 32000,
}
const qwen25 = {
  architectures: ['Qwen2ForCausalLM'],
  hidden_act: 'silu',
  hidden_size: 896,
  intermediate_size: 4864,
  max_position_embeddings: 32768,
  max_window_layers: 21,
  model_type: 'qwen2',
  num_attention_heads: 14,
  num_hidden_layers: 24,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000,
  sliding_window: 32768,
  tie_word_embeddings: true,
  use_mrope: false,
  use_sliding_window: false,
  vocab_size: 151936,
}
const qwen3 = {
  architectures: ['Qwen3ForCausalLM'],
  attention_bias: false,
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 1024,
  intermediate_size: 3072,
  max_position_embeddings: 40960,
  max_window_layers: 28,
  model_type: 'qwen3',
  num_attention_heads: 16,
  num_hidden_layers: 28,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 151936,
}
const gemma2 = {
  architectures: ['Gemma2ForCausalLM'],
  attention_bias: false,
  attn_logit_softcapping: 50,
  cache_implementation: 'hybrid',
  final_logit_softcapping: 30,
  head_dim: 256,
  hidden_act: 'gelu_pytorch_tanh',
  hidden_activation: 'gelu_pytorch_tanh',
  hidden_size: 2304,
  intermediate_size: 9216,
  max_position_embeddings: 8192,
  model_type: 'gemma2',
  num_attention_heads: 8,
  num_hidden_layers: 26,
  num_key_value_heads: 4,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  sliding_window: 4096,
  vocab_size: 256000,
}
const gemma3 = {
  architectures: ['Gemma3ForCausalLM'],
  attention_bias: false,
  attn_logit_softcapping: null,
  cache_implementation: 'hybrid',
  final_logit_softcapping: null,
  head_dim: 256,
  hidden_activation: 'gelu_pytorch_tanh',
  hidden_size: 1152,
  intermediate_size: 6912,
  max_position_embeddings: 32768,
  model_type: 'gemma3_text',
  num_attention_heads: 4,
  num_hidden_layers: 26,
  num_key_value_heads: 1,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_local_base_freq: 10000,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: 512,
  sliding_window_pattern: 6,
  vocab_size: 262144,
}
const phi4mini = {
  architectures: ['Phi3ForCausalLM'],
  attention_bias: false,
  auto_map: { AutoConfig: 'configuration_phi3.Phi3Config' },
  embd_pdrop: 0,
  full_attn_mod: 1,
  hidden_act: 'silu',
  hidden_size: 3072,
  intermediate_size: 8192,
  interpolate_factor: 1,
  lm_head_bias: false,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: 'phi3',
  num_attention_heads: 24,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  original_max_position_embeddings: 4096,
  partial_rotary_factor: 0.75,
  resid_pdrop: 0,
  rms_norm_eps: 1e-5,
  rope_scaling: { long_factor: Array(48).fill(2), short_factor: Array(48).fill(1), type: 'longrope' },
  rope_theta: 10000,
  sliding_window: 262144,
  tie_word_embeddings: true,
  vocab_size: 200064,
}
const gpt2 = {
  activation_function: 'gelu_new',
  architectures: ['GPT2LMHeadModel'],
  attn_pdrop: 0.1,
  embd_pdrop: 0.1,
  layer_norm_epsilon: 1e-5,
  model_type: 'gpt2',
  n_ctx: 1024,
  n_embd: 768,
  n_head: 12,
  n_layer: 12,
  n_positions: 1024,
  resid_pdrop: 0.1,
  summary_activation: null,
  summary_first_dropout: 0.1,
  summary_proj_to_labels: true,
  summary_type: 'cls_index',
  summary_use_proj: true,
  task_specific_params: { 'text-generation': { do_sample: true, max_length: 50 } },
  vocab_size: 50257,
}
const granite3 = {
  architectures: ['GraniteForCausalLM'],
  attention_bias: false,
  attention_multiplier: 0.015625,
  embedding_multiplier: 12,
  hidden_act: 'silu',
  hidden_size: 2048,
  intermediate_size: 8192,
  logits_scaling: 8,
  max_position_embeddings: 4096,
  mlp_bias: false,
  model_type: 'granite',
  num_attention_heads: 32,
  num_hidden_layers: 40,
  num_key_value_heads: 8,
  residual_multiplier: 0.22,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
  rope_theta: 10000,
  tie_word_embeddings: true,
  vocab_size: 49155,
}
const mixtral8x7b = {
  architectures: ['MixtralForCausalLM'],
  hidden_act: 'silu',
  hidden_size: 4096,
  intermediate_size: 14336,
  max_position_embeddings: 32768,
  model_type: 'mixtral',
  num_attention_heads: 32,
  num_experts_per_tok: 2,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  num_local_experts: 8,
  output_router_logits: false,
  rms_norm_eps: 1e-5,
  rope_theta: 1000000,
  router_aux_loss_coef: 0.02,
  sliding_window: null,
  tie_word_embeddings: false,
  vocab_size: 32000,
}
const qwen3Moe = {
  architectures: ['Qwen3MoeForCausalLM'],
  attention_bias: false,
  decoder_sparse_step: 2,
  head_dim: 128,
  hidden_act: 'silu',
  hidden_size: 2048,
  intermediate_size: 6144,
  max_position_embeddings: 40960,
  max_window_layers: 4,
  mlp_only_layers: [1],
  model_type: 'qwen3_moe',
  moe_intermediate_size: 768,
  norm_topk_prob: true,
  num_attention_heads: 32,
  num_experts: 4,
  num_experts_per_tok: 2,
  num_hidden_layers: 4,
  num_key_value_heads: 4,
  rms_norm_eps: 1e-6,
  rope_theta: 1000000,
  sliding_window: null,
  tie_word_embeddings: false,
  use_sliding_window: false,
  vocab_size: 1000,
}

describe('published configs are read without a field left over', () => {
  const known = [llama2, llama32, smollm2, mistral7b, qwen3, gemma2, gemma3, gpt2, granite3, mixtral8x7b, qwen3Moe]
  test.each(known.map((config) => [config.architectures[0], config] as const))('%s', (_, config) => {
    expect(describeModel(config)).toMatchObject({ warnings: [], unknown: [] })
  })

  test('what nothing reads is named', () => {
    expect(describeModel(qwen25).unknown).toEqual(['use_mrope'])
    expect(describeModel(phi4mini).unknown).toEqual(['full_attn_mod', 'interpolate_factor'])
  })
})

describe('what the families say', () => {
  test('Llama: projections, tied head, llama3 frequencies', () => {
    const { decoder } = describeModel(llama32)
    expect(decoder.head).toMatchObject({ module: 'lm_head', weight: 'model.embed_tokens.weight', tied: true })
    expect(decoder.layers).toHaveLength(16)
    expect(decoder.layers[3]!.attention).toMatchObject({
      qkv: {
        kind: 'apart',
        k: { weight: 'model.layers.3.self_attn.k_proj.weight', inFeatures: 2048, outFeatures: 512 },
      },
      scale: 0.125,
    })
    expect(decoder.maxPositions).toBe(64)
    expect(describeModel({ ...llama32, attention_bias: true }).decoder.layers[0]!.attention.o.bias).toBeDefined()
  })

  test('Mistral: an absent window is 4096, a null one is none', () => {
    const { sliding_window: _, ...absent } = mistral7b
    const windowOf = (config: Record<string, unknown>) =>
      describeModel(config).decoder.layers[0]!.attention.slidingWindow
    expect(windowOf(absent)).toBe(4096)
    expect(windowOf({ ...mistral7b, sliding_window: null })).toBeUndefined()
  })

  test('Qwen2: biases on q, k and v alone; windows from max_window_layers on, or as layer_types says', () => {
    const { decoder } = describeModel(qwen25)
    const { qkv, o } = decoder.layers[0]!.attention
    expect(qkv.kind === 'apart' && qkv.v.bias).toBe('model.layers.0.self_attn.v_proj.bias')
    expect(o.bias).toBeUndefined()
    const windows = (config: Record<string, unknown>) =>
      describeModel(config).decoder.layers.map(({ attention }) => attention.slidingWindow)
    expect(new Set(windows(qwen25))).toEqual(new Set([undefined]))
    const switchedOn = windows({ ...qwen25, use_sliding_window: true })
    expect(switchedOn).toEqual([...Array(21).fill(undefined), ...Array(3).fill(32768)])
    const types = ['sliding_attention', ...Array(23).fill('full_attention')]
    expect(windows({ ...qwen25, use_sliding_window: true, layer_types: types })[0]).toBe(32768)
    expect(() => windows({ ...qwen25, layer_types: types })).toThrow(/use_sliding_window is false/)
  })

  test('Gemma 2: norms of 1 + w around both branches, softcaps, every other layer with a window', () => {
    const { decoder } = describeModel(gemma2)
    expect(decoder.embedding.multiplier).toBe(48)
    expect(decoder.layers.slice(0, 3).map(({ attention }) => attention.slidingWindow)).toEqual([4096, undefined, 4096])
    expect(decoder.layers[0]).toMatchObject({
      postMlpNorm: { weight: 'model.layers.0.post_feedforward_layernorm.weight', addOne: true },
      attention: { softcap: 50, scale: 1 / 16 },
    })
    expect(decoder.head).toMatchObject({ softcap: 30, tied: true })
  })

  test('Gemma 3: every sixth layer sees all and has its own rotary table', () => {
    const { decoder } = describeModel(gemma3)
    const seen = decoder.layers.slice(0, 7).map(({ attention }) => [attention.slidingWindow, attention.ropeTable])
    expect(seen).toEqual([...Array(5).fill([512, 1]), [undefined, 0], [512, 1]])
    expect(decoder.ropeTables).toHaveLength(2)
    const modern = {
      full_attention: { rope_type: 'linear', factor: 8, rope_theta: 1e6 },
      sliding_attention: { rope_type: 'default', rope_theta: 10000 },
    }
    const { rope_theta: _, rope_local_base_freq: __, rope_scaling: ___, ...rest } = gemma3
    const classic = { ...gemma3, rope_scaling: { rope_type: 'linear', factor: 8 } }
    expect(describeModel({ ...rest, rope_parameters: modern }).decoder).toEqual(describeModel(classic).decoder)
  })

  test('Phi-3: fused matrices, part of each head turning, two tables', () => {
    const config = { ...phi4mini, original_max_position_embeddings: 32 }
    const { decoder } = describeModel(config)
    const { attention, mlp } = decoder.layers[0]!
    expect(attention.qkv).toMatchObject({ kind: 'fused', qkv: { outFeatures: (24 + 16) * 128 } })
    expect(mlp).toMatchObject({ kind: 'gated-fused', gateUp: { outFeatures: 16384 } })
    expect(decoder.ropeTables[0]).toMatchObject({ rotaryDim: 96, positions: 64, long: { originalPositions: 32 } })
  })

  test('GPT-2: matrices [in, out], learned positions, all modules under its own names', () => {
    const { decoder } = describeModel(gpt2)
    expect(decoderTensors(decoder).get('transformer.h.11.attn.c_attn.weight')).toEqual([768, 2304])
    expect(decoderTensors(decoder).get('transformer.wpe.weight')).toEqual([1024, 768])
    expect(decoderModules(decoder).get('transformer.h.0.mlp.c_proj')).toEqual({
      name: 'transformer.h.0.mlp.c_proj',
      kind: 'linear',
      inFeatures: 3072,
      outFeatures: 768,
      transposed: true,
    })
    const scaled = describeModel({ ...gpt2, scale_attn_by_inverse_layer_idx: true }).decoder
    expect(scaled.layers[3]!.attention.scale).toBeCloseTo(0.125 / 4)
  })

  test('Granite: four multipliers', () => {
    const { decoder } = describeModel(granite3)
    expect(decoder.embedding.multiplier).toBe(12)
    expect(decoder.head.divisor).toBe(8)
    expect(decoder.layers[0]).toMatchObject({ residualMultiplier: 0.22, attention: { scale: 0.015625 } })
  })

  test('SmolLM3: one layer in four does not turn, by list or by interval', () => {
    const base = { ...qwen3, architectures: ['SmolLM3ForCausalLM'], model_type: 'smollm3', num_hidden_layers: 4 }
    const { max_window_layers: _, ...config } = base
    const turning = (more: Record<string, unknown>) =>
      describeModel({ ...config, ...more }).decoder.layers.map(({ attention }) => attention.ropeTable)
    expect(turning({})).toEqual([0, 0, 0, undefined])
    expect(turning({ no_rope_layers: [1, 0, 1, 0] })).toEqual([0, undefined, 0, undefined])
  })

  test('Mixtral and Qwen3-MoE: experts, and dense layers where the config says so', () => {
    const { mlp } = describeModel(mixtral8x7b).decoder.layers[0]!
    expect(mlp).toMatchObject({ kind: 'moe', normalise: true, expertsPerToken: 2 })
    expect(mlp.kind === 'moe' && mlp.experts[7]!.down.weight).toBe(
      'model.layers.0.block_sparse_moe.experts.7.w2.weight',
    )
    const kinds = describeModel(qwen3Moe).decoder.layers.map((layer) => layer.mlp.kind)
    expect(kinds).toEqual(['gated', 'gated', 'gated', 'moe'])
  })

  test('StarCoder2 and OLMo 2: where norms and biases are', () => {
    const sizes = {
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      vocab_size: 10,
    }
    const starcoder = describeModel({ ...sizes, architectures: ['Starcoder2ForCausalLM'] }).decoder
    expect(starcoder.finalNorm).toMatchObject({ kind: 'layer', bias: 'model.norm.bias' })
    expect(starcoder.layers[0]!.mlp).toMatchObject({ kind: 'plain', activation: 'gelu_tanh' })
    expect(starcoder.kvHeads).toBe(2)
    const olmo = describeModel({ ...sizes, architectures: ['Olmo2ForCausalLM'] }).decoder
    expect(olmo.layers[0]).not.toHaveProperty('attentionNorm')
    expect(decoderTensors(olmo).get('model.layers.0.self_attn.q_norm.weight')).toEqual([64])
  })
})

describe('what can not be served is refused by name', () => {
  test.each<[Record<string, unknown>, RegExp]>([
    [{ architectures: ['FalconForCausalLM'] }, /architecture FalconForCausalLM; served: LlamaForCausalLM/],
    [{ model_type: 'rwkv' }, /architecture rwkv/],
    [{ ...llama32, quantization_config: { quant_method: 'gptq' } }, /quantization_config = .*gptq/],
    [{ ...llama32, sliding_window: 128 }, /sliding_window = 128/],
    [{ ...llama32, partial_rotary_factor: 0.5 }, /partial_rotary_factor = 0.5/],
    [{ ...llama32, attention_bias: 'yes' }, /attention_bias = "yes"; it must be true or false/],
    [{ ...llama32, hidden_act: 'xielu' }, /hidden_act = "xielu"; it must be one of silu/],
    [{ ...llama32, num_hidden_layers: -1 }, /num_hidden_layers = -1/],
    [{ ...llama32, num_hidden_layers: 1e12 }, /num_hidden_layers = 1000000000000/],
    [{ ...llama32, num_key_value_heads: 5 }, /num_key_value_heads = 5; it must be a divisor/],
    [{ ...llama32, embedding_multiplier: 12 }, /embedding_multiplier = 12/],
    [{ ...gemma3, use_bidirectional_attention: true }, /use_bidirectional_attention = true/],
    [{ ...gemma2, layer_types: ['chunked_attention', ...Array(25).fill('full_attention')] }, /chunked_attention/],
    [{ ...gemma2, layer_types: ['full_attention'] }, /a list of 26 entries/],
    [{ ...mixtral8x7b, num_experts_per_tok: 9 }, /num_experts_per_tok = 9/],
    [{ ...qwen3Moe, mlp_only_layers: [4] }, /mlp_only_layers = \[4\]/],
  ])('%#', (config, message) => {
    expect(() => describeModel(config)).toThrow(message)
  })
})
