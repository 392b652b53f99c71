/** What a family's file says, and the parts that most families are made of. */

import { type ConfigFields, invalid } from '../config-fields.ts'
import type { Activation, AttentionSpec, DecoderSpec, LinearSpec, MlpSpec, NormSpec } from '../decoder-spec.ts'

export interface Family {
  /** transformers' class, as `architectures` in config.json names it. */
  architecture: string
  modelType: string
  /** The defaults of transformers' config class, for fields that config.json leaves out. */
  defaults: Record<string, unknown>
  decoder(config: ConfigFields, limits: FamilyLimits): DecoderSpec
}

export interface FamilyLimits {
  /** Most positions that the node wants to serve; the model's own maximum may be lower. */
  maxPositions: number
  warn(text: string): void
}

/** The sizes that every family has. */
export interface DecoderShape {
  hiddenSize: number
  intermediateSize: number
  layers: number
  heads: number
  kvHeads: number
  headSize: number
  vocabSize: number
  /** `max_position_embeddings`. */
  modelPositions: number
  /** Served: `modelPositions`, or the node's limit. */
  positions: number
}

/** By the names that all but GPT-2 use. */
export function readShape(config: ConfigFields, limits: FamilyLimits): DecoderShape {
  const hiddenSize = config.size('hidden_size')
  const heads = config.size('num_attention_heads')
  const kvHeads = config.optionalSize('num_key_value_heads') ?? heads
  if (heads % kvHeads !== 0) {
    throw invalid('num_key_value_heads', kvHeads, `a divisor of num_attention_heads = ${heads}`)
  }
  const headSize = config.optionalSize('head_dim') ?? hiddenSize / heads
  if (!Number.isInteger(headSize) || headSize % 2 !== 0) {
    throw invalid(
      'hidden_size',
      hiddenSize,
      `an even multiple of num_attention_heads = ${heads}, as no head_dim is given`,
    )
  }
  const modelPositions = config.size('max_position_embeddings')
  return {
    hiddenSize,
    intermediateSize: config.size('intermediate_size'),
    layers: config.size('num_hidden_layers'),
    heads,
    kvHeads,
    headSize,
    vocabSize: config.size('vocab_size'),
    modelPositions,
    positions: Math.min(modelPositions, limits.maxPositions),
  }
}

const ACTIVATIONS: Record<string, Activation> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  relu: 'relu',
}

export function readActivation(config: ConfigFields, field = 'hidden_act'): Activation {
  const name = config.text(field)
  const activation = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined
  if (activation === undefined) {
    throw invalid(field, name, `one of ${Object.keys(ACTIVATIONS).join(', ')}`)
  }
  return activation
}

/** Which layers see only a window, from `layer_types`; `fallback` says it where the list is absent. */
export function readLayerTypes(
  config: ConfigFields,
  layers: number,
  fallback: (layer: number) => 'sliding' | 'full',
): ('sliding' | 'full')[] {
  const list = config.list('layer_types', layers)
  if (list === undefined) {
    return Array.from({ length: layers }, (_, layer) => fallback(layer))
  }
  return list.map((entry) => {
    if (entry === 'sliding_attention') {
      return 'sliding'
    }
    if (entry === 'full_attention') {
      return 'full'
    }
    throw invalid('layer_types', entry, 'full_attention or sliding_attention')
  })
}

export function linear(module: string, inFeatures: number, outFeatures: number, bias = false): LinearSpec {
  const spec: LinearSpec = { module, weight: `${module}.weight`, inFeatures, outFeatures }
  return bias ? { ...spec, bias: `${module}.bias` } : spec
}

export function rmsNorm(module: string, epsilon: number, addOne = false): NormSpec {
  return { kind: 'rms', weight: `${module}.weight`, epsilon, ...(addOne ? { addOne } : {}) }
}

export function layerNorm(module: string, epsilon: number): NormSpec {
  return { kind: 'layer', weight: `${module}.weight`, bias: `${module}.bias`, epsilon }
}

/** q_norm and k_norm below `module`, over each head. */
export function headNorms(module: string, epsilon: number, addOne = false): NonNullable<AttentionSpec['qkNorm']> {
  return {
    q: rmsNorm(`${module}.q_norm`, epsilon, addOne),
    k: rmsNorm(`${module}.k_norm`, epsilon, addOne),
    perHead: true,
  }
}

/** q_proj, k_proj, v_proj and o_proj below `module`; scale 1 / √headSize, no rotary table yet. */
export function apartAttention(
  module: string,
  { hiddenSize, heads, kvHeads, headSize }: DecoderShape,
  bias: { qkv?: boolean; o?: boolean } = {},
): Pick<AttentionSpec, 'qkv' | 'o' | 'scale'> {
  const project = (name: string, count: number) => linear(`${module}.${name}`, hiddenSize, count * headSize, bias.qkv)
  return {
    qkv: { kind: 'apart', q: project('q_proj', heads), k: project('k_proj', kvHeads), v: project('v_proj', kvHeads) },
    o: linear(`${module}.o_proj`, heads * headSize, hiddenSize, bias.o),
    scale: headSize ** -0.5,
  }
}

export function gatedMlp(
  module: string,
  hiddenSize: number,
  intermediateSize: number,
  activation: Activation,
  bias = false,
): MlpSpec {
  return {
    kind: 'gated',
    gate: linear(`${module}.gate_proj`, hiddenSize, intermediateSize, bias),
    up: linear(`${module}.up_proj`, hiddenSize, intermediateSize, bias),
    down: linear(`${module}.down_proj`, intermediateSize, hiddenSize, bias),
    activation,
  }
}

/** `lm_head`, or the embedding's tensor where the two are tied; adapters name it `lm_head` either way. */
export function languageHead(
  shape: Pick<DecoderShape, 'hiddenSize' | 'vocabSize'>,
  tied: boolean,
  embedding = 'model.embed_tokens',
): DecoderSpec['head'] {
  const head = linear('lm_head', shape.hiddenSize, shape.vocabSize)
  return { ...head, weight: tied ? `${embedding}.weight` : head.weight, tied }
}

/** What every family but GPT-2 starts from; the family adds layers, head and tables. */
export function decoderFrame(
  shape: DecoderShape,
): Pick<DecoderSpec, 'hiddenSize' | 'vocabSize' | 'heads' | 'kvHeads' | 'headSize' | 'maxPositions' | 'embedding'> {
  return {
    hiddenSize: shape.hiddenSize,
    vocabSize: shape.vocabSize,
    heads: shape.heads,
    kvHeads: shape.kvHeads,
    headSize: shape.headSize,
    maxPositions: shape.positions,
    embedding: { module: 'model.embed_tokens', weight: 'model.embed_tokens.weight' },
  }
}

/** A number for each layer: `0 … layers - 1`. */
export function eachLayer<T>(layers: number, make: (layer: number, module: string) => T): T[] {
  return Array.from({ length: layers }, (_, layer) => make(layer, `model.layers.${layer}`))
}
