/** Small random decoders and adapters, for tests that compare the runner with itself. */

import { randomAdapter, randomBase, type Shape } from '../../bench/random-base.ts'
import type { LoraAdapter } from '../../gpu-node/model/packed-adapter.ts'
import type { WeightSource } from '../../gpu-node/model/runner/weight-source.ts'

export const TINY_SHAPE: Shape = {
  layers: 2,
  hidden: 64,
  heads: 4,
  kvHeads: 2,
  headSize: 16,
  inner: 96,
  vocab: 120,
  positions: 96,
}

export function tinyBase(): WeightSource {
  return randomBase(TINY_SHAPE)
}

/** Strong enough to change every token; `rank` up to 256. */
export function tinyAdapter(base: WeightSource, rank: number, seed: number): LoraAdapter {
  return randomAdapter(base.decoder, rank, seed)
}
