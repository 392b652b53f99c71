/**
 * An adapter in two forms: as PEFT's files mean it (`LoraAdapter`), and as the runner's graph takes it (`PackedAdapter`).
 * Buffers are SharedArrayBuffers, so that loader, HTTP and engine threads hold one copy.
 */

import type { PackedGroup } from '../ort/lora-kernel/kernel-layout.ts'
import type { TiledGroup } from '../ort/lora-kernel/tiled-layout.ts'

/** One adapted module. Row-major float32, whatever the file's dtype was. */
export interface LoraModule {
  /** The base's module path without prefixes, e.g. `model.layers.0.self_attn.q_proj`, `model.embed_tokens`, `lm_head`. */
  name: string
  rank: number
  /** `[rank, in]` (embeddings: `[rank, vocab]`). */
  loraA: Float32Array
  /** `[out, rank]` (embeddings: `[hidden, rank]`). */
  loraB: Float32Array
  /** alpha / rank, or alpha / √rank with rsLoRA; patterns applied. */
  scaling: number
  /** `[out]`: bias of lora_B (`lora_bias`). */
  loraBias?: Float32Array
  /** `[out]`: DoRA's magnitude vector. */
  magnitude?: Float32Array
}

/** A module the adapter replaces as a whole (`modules_to_save`); `[out, in]`, and its bias. */
export interface SavedModule {
  name: string
  weight: Float32Array
  bias?: Float32Array
}

export interface LoraAdapter {
  /** SHA-256, hex, over the canonical config and tensors: the adapter's identity everywhere. */
  digest: string
  /** Largest rank of any module. */
  maxRank: number
  modules: LoraModule[]
  savedModules: SavedModule[]
}

/**
 * `kernel-…`: groups for the LoRA kernel, in float32 or int8; `kernel-tiled`: for the int8 product. `graph`: plain matrices, for machines without the kernel and for
 * adapters that it does not take. `device-…`: one image of the banks' ranges (gpu-node/model/device/).
 */
export type AdapterLayout =
  | 'graph'
  | 'kernel-f32'
  | 'kernel-int8'
  | 'kernel-tiled'
  | 'device-float16'
  | 'device-bfloat16'
  | 'device-float32'

/** Graph-ready: made off the decode path by `packAdapter`, copied into the engine's banks by `ModelRunner.loadAdapter`. */
export interface PackedAdapter {
  digest: string
  rank: number
  /** What it occupies in RAM. */
  bytes: number
  /** Opaque to all but gpu-node/model. Structured-cloneable: typed arrays over SharedArrayBuffers and plain values. */
  parts: Record<string, Float32Array>
  layout: AdapterLayout
  /** By matrix of the base; none in the layout `graph`. */
  groups: Record<string, PackedGroup | TiledGroup>
  features: { embedding: boolean; head: boolean; bias: boolean; magnitude: boolean }
}
