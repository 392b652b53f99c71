/**
 * What a decoder is made of, as plain data: the families write it from config.json, the graph builder turns it into ONNX.
 * Tensors are named as in the checkpoint; no weights are held here.
 */

export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu'

export interface NormSpec {
  kind: 'rms' | 'layer'
  weight: string
  bias?: string
  epsilon: number
  /** Gemma stores w and multiplies by 1 + w. */
  addOne?: boolean
}

/** `y = x·Wᵀ + b`. */
export interface LinearSpec {
  /** Path as LoRA adapters name it. */
  module: string
  /** Checkpoint tensor, `[out, in]`; `[in, out]` when `transposed` (GPT-2's Conv1D). */
  weight: string
  transposed?: boolean
  bias?: string
  inFeatures: number
  outFeatures: number
}

export interface AttentionSpec {
  /** Apart, or fused in one matrix whose output is [q | k | v] (Phi-3's qkv_proj, GPT-2's c_attn). */
  qkv: { kind: 'apart'; q: LinearSpec; k: LinearSpec; v: LinearSpec } | { kind: 'fused'; qkv: LinearSpec }
  o: LinearSpec
  /** Over each head (`perHead`: Qwen3, Gemma 3, weight `[headSize]`) or over the whole projection (OLMo 2). */
  qkNorm?: { q: NormSpec; k: NormSpec; perHead: boolean }
  /** Index into `DecoderSpec.ropeTables`; absent: no rotary embedding in this layer. */
  ropeTable?: number
  /** Positions a token sees, itself included; absent: all. */
  slidingWindow?: number
  /** Logits of attention become c·tanh(x / c). */
  softcap?: number
  /** What q·k is multiplied by; usually 1 / √headSize. */
  scale: number
}

export type MlpSpec =
  | { kind: 'gated'; gate: LinearSpec; up: LinearSpec; down: LinearSpec; activation: Activation }
  /** Output of `gateUp` is [gate | up] (Phi-3). */
  | { kind: 'gated-fused'; gateUp: LinearSpec; down: LinearSpec; activation: Activation }
  | { kind: 'plain'; up: LinearSpec; down: LinearSpec; activation: Activation }
  | {
      kind: 'moe'
      router: LinearSpec
      experts: { gate: LinearSpec; up: LinearSpec; down: LinearSpec }[]
      expertsPerToken: number
      /** Routing weights: softmax over all experts, then the top k; renormalised to 1 when `normalise`. */
      normalise: boolean
      activation: Activation
    }

export interface LayerSpec {
  /** On the input of attention; absent in OLMo 2. */
  attentionNorm?: NormSpec
  attention: AttentionSpec
  /** On attention's output, before it is added (Gemma 2/3, OLMo 2). */
  postAttentionNorm?: NormSpec
  mlpNorm?: NormSpec
  mlp: MlpSpec
  postMlpNorm?: NormSpec
  /** Both branches are multiplied by it before they are added (Granite). */
  residualMultiplier?: number
}

/** cos and sin, `[positions, rotaryDim / 2]` each, attention factor folded in; non-interleaved (NeoX) rotation. */
export interface RopeTable {
  rotaryDim: number
  positions: number
  cos: Float32Array
  sin: Float32Array
  /** Longrope: the table of sequences longer than `originalPositions`; a sequence uses one table for all its positions. */
  long?: { originalPositions: number; cos: Float32Array; sin: Float32Array }
}

export interface DecoderSpec {
  hiddenSize: number
  vocabSize: number
  heads: number
  kvHeads: number
  headSize: number
  maxPositions: number
  embedding: {
    module: string
    weight: string
    /** √hidden in Gemma, a config field in Granite. */
    multiplier?: number
    /** GPT-2: `[positionRows, hidden]`, added to the token's embedding. */
    positionWeight?: string
    /** Rows that `positionWeight` has in the checkpoint; `maxPositions` may be lower. */
    positionRows?: number
  }
  layers: LayerSpec[]
  finalNorm: NormSpec
  /** `weight` is the embedding's tensor when the head is tied. Logits are divided by `divisor` (Granite), then softcapped (Gemma 2). */
  head: LinearSpec & { tied: boolean; divisor?: number; softcap?: number }
  ropeTables: RopeTable[]
}
