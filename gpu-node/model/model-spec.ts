/** What the rest of the node may know of a base model: sizes, names and modules; read from config.json, without weights. */

/** A module an adapter may adapt. */
export interface BaseModule {
  /** Path as transformers names it, e.g. `model.layers.0.self_attn.q_proj`; `transformer.h.0.attn.c_attn` for GPT-2. */
  name: string
  kind: 'linear' | 'embedding'
  /** Embeddings: the vocabulary. */
  inFeatures: number
  outFeatures: number
  /** Stored `[in, out]` (GPT-2's Conv1D). */
  transposed: boolean
}

export interface ModelSpec {
  /** transformers' `model_type`, e.g. `llama`. */
  family: string
  /** transformers' class, e.g. `LlamaForCausalLM`. */
  architecture: string
  hiddenSize: number
  layers: number
  heads: number
  kvHeads: number
  headSize: number
  vocabSize: number
  /** Positions that the node serves: the model's own maximum, lowered where its rope type demands. */
  maxPositions: number
  tiedHead: boolean
  modules: ReadonlyMap<string, BaseModule>
  bosToken: number | undefined
  eosTokens: readonly number[]
  /** SHA-256, hex, over config.json, the weight files' names, sizes and tensor headers, and samples of every tensor. */
  baseDigest: string
  /** Fields of config.json that no code here reads, and other things an operator should see. */
  warnings: string[]
}
