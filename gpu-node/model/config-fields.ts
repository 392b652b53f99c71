/**
 * Reads config.json field by field and remembers which fields were read, so that nothing in it is ignored by accident:
 * what nobody read is harmless by name, neutral by value, refused, or listed for the operator.
 */

import { ModelError } from './model-error.ts'

/** No size in a config reaches it; keeps products of a few sizes exact. */
const MAX_SIZE = 2 ** 31

export class ConfigFields {
  readonly #values: Record<string, unknown>
  readonly #defaults: Record<string, unknown>
  readonly #read = new Set<string>()

  /** `defaults`: what transformers' config class has for a field that the file leaves out. A `null` in the file stays `null`. */
  constructor(values: Record<string, unknown>, defaults: Record<string, unknown> = {}) {
    this.#values = values
    this.#defaults = defaults
  }

  /** The value as in the file, or the default; `undefined` where neither has it. */
  raw(name: string): unknown {
    this.#read.add(name)
    return Object.hasOwn(this.#values, name) ? this.#values[name] : this.#defaults[name]
  }

  /** A size: an integer of at least 1. */
  size(name: string): number {
    const value = this.optionalSize(name)
    if (value === undefined) {
      throw new ModelError(`config.json lacks '${name}'`)
    }
    return value
  }

  /** `undefined` where the field is absent or null. */
  optionalSize(name: string): number | undefined {
    const value = this.raw(name) ?? undefined
    if (value !== undefined && !(Number.isInteger(value) && Number(value) >= 1 && Number(value) < MAX_SIZE)) {
      throw invalid(name, value, 'an integer of at least 1')
    }
    return value as number | undefined
  }

  number(name: string): number {
    const value = this.optionalNumber(name)
    if (value === undefined) {
      throw new ModelError(`config.json lacks '${name}'`)
    }
    return value
  }

  optionalNumber(name: string): number | undefined {
    const value = this.raw(name) ?? undefined
    if (value !== undefined && !(typeof value === 'number' && Number.isFinite(value))) {
      throw invalid(name, value, 'a number')
    }
    return value
  }

  /** Absent and null are `false`. */
  flag(name: string): boolean {
    const value = this.raw(name) ?? false
    if (typeof value !== 'boolean') {
      throw invalid(name, value, 'true or false')
    }
    return value
  }

  text(name: string): string {
    const value = this.raw(name)
    if (typeof value !== 'string') {
      throw invalid(name, value, 'a string')
    }
    return value
  }

  /** A list with one entry a layer; `undefined` where the field is absent or null. */
  list(name: string, length: number): unknown[] | undefined {
    const value = this.raw(name) ?? undefined
    if (value === undefined) {
      return undefined
    }
    if (!Array.isArray(value) || value.length !== length) {
      throw invalid(name, value, `a list of ${length} entries`)
    }
    return value
  }

  /** `undefined` where the field is absent or null. */
  object(name: string): Record<string, unknown> | undefined {
    const value = this.raw(name) ?? undefined
    if (value === undefined) {
      return undefined
    }
    if (typeof value !== 'object' || Array.isArray(value)) {
      throw invalid(name, value, 'an object')
    }
    return value as Record<string, unknown>
  }

  /** The field changes nothing here, whatever its value. */
  skip(...names: string[]): void {
    for (const name of names) {
      this.#read.add(name)
    }
  }

  /**
   * Deals with the fields that nobody read: refuses those that change the maths at their value, and returns the names of those
   * that nothing here knows.
   */
  finish(): string[] {
    const unknown: string[] = []
    for (const [name, value] of Object.entries(this.#values)) {
      if (this.#read.has(name) || HARMLESS.has(name) || name.startsWith('_')) {
        continue
      }
      const neutral = NEUTRAL[name]
      if (neutral === undefined) {
        unknown.push(name)
      } else if (!neutral.includes(value) && !isEmpty(value)) {
        throw new ModelError(`config.json has ${name} = ${show(value)}, which this architecture can't apply here`)
      }
    }
    return unknown
  }
}

export function invalid(name: string, value: unknown, wanted: string): ModelError {
  return new ModelError(`config.json has ${name} = ${show(value)}; it must be ${wanted}`)
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 200)
}

function isEmpty(value: unknown): boolean {
  return value === null || (Array.isArray(value) && value.length === 0)
}

/** Fields about training, files and generation: no effect on what a forward pass computes. */
const HARMLESS = new Set([
  ...['architectures', 'model_type', 'torch_dtype', 'dtype', 'transformers_version', 'name_or_path', 'auto_map'],
  ...[
    'initializer_range',
    'initializer_factor',
    'use_cache',
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'unk_token_id',
  ],
  ...['sep_token_id', 'decoder_start_token_id', 'tokenizer_class', 'cache_implementation', 'gradient_checkpointing'],
  ...[
    'attention_dropout',
    'hidden_dropout',
    'resid_pdrop',
    'embd_pdrop',
    'attn_pdrop',
    'residual_dropout',
    'classifier_dropout',
  ],
  ...[
    'embedding_dropout',
    'output_attentions',
    'output_hidden_states',
    'return_dict',
    'return_dict_in_generate',
    'id2label',
  ],
  ...['label2id', 'num_labels', 'problem_type', 'task_specific_params', 'finetuning_task', 'use_return_dict', 'prefix'],
  ...[
    'chunk_size_feed_forward',
    'pretraining_tp',
    'router_aux_loss_coef',
    'output_router_logits',
    'attn_implementation',
  ],
  ...[
    'transformers.js_config',
    'is_llama_config',
    'unsloth_fixed',
    'unsloth_version',
    'max_length',
    'do_sample',
    'temperature',
  ],
  ...[
    'use_flash_attn',
    'flash_attention',
    'attention_probs_dropout_prob',
    'hidden_dropout_prob',
    'neftune_noise_alpha',
  ],
])

/** Fields that change the maths, with the values at which they don't; `null` and an empty list never do. */
const NEUTRAL: Record<string, unknown[]> = {
  quantization_config: [],
  compression_config: [],
  attention_bias: [false],
  mlp_bias: [false],
  use_bias: [false],
  qkv_bias: [false],
  use_qkv_bias: [false],
  bias: [false],
  lm_head_bias: [false],
  tie_encoder_decoder: [false],
  is_encoder_decoder: [false],
  add_cross_attention: [false],
  cross_attention_hidden_size: [],
  pruned_heads: [],
  use_bidirectional_attention: [false],
  sliding_window: [],
  use_sliding_window: [false],
  sliding_window_pattern: [],
  max_window_layers: [],
  layer_types: [],
  attention_chunk_size: [],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  query_pre_attn_scalar: [],
  attention_multiplier: [],
  embedding_multiplier: [1],
  residual_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  scale_emb: [1],
  scale_depth: [],
  mup_width_scale: [1],
  head_dim: [],
  qk_norm: [false],
  use_qk_norm: [false],
  clip_qkv: [],
  qk_layernorm: [false],
  rope_theta: [],
  rope_scaling: [],
  rope_parameters: [],
  rope_local_base_freq: [],
  rope_interleaved: [false],
  partial_rotary_factor: [1],
  rotary_pct: [1],
  rotary_emb_base: [],
  original_max_position_embeddings: [],
  no_rope_layers: [],
  no_rope_layer_interval: [],
  alibi: [false],
  use_alibi: [false],
  parallel_attn: [false],
  use_parallel_residual: [false],
  num_experts: [0],
  num_local_experts: [0],
  n_routed_experts: [0],
  n_shared_experts: [0],
  shared_expert_intermediate_size: [0],
  num_experts_per_tok: [],
  moe_intermediate_size: [],
  decoder_sparse_step: [],
  mlp_only_layers: [],
  norm_topk_prob: [],
  hidden_act: [],
  hidden_activation: [],
  activation_function: [],
  text_config: [],
  vision_config: [],
  audio_config: [],
  type_vocab_size: [0],
  scale_attn_by_inverse_layer_idx: [false],
  num_kv_shared_layers: [0],
  attn_output_gate: [false],
  use_attention_sinks: [false],
  hidden_size_per_layer_input: [0],
}
