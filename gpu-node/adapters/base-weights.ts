/** A module's own weights, read from the base checkpoint by the module's name. */

import type { Checkpoint } from '../model/checkpoint.ts'
import { decoderLinears } from '../model/decoder-tensors.ts'
import type { BaseWeights } from './base-copies.ts'

export function baseWeightsOf(checkpoint: Pick<Checkpoint, 'decoder' | 'readTensor'>): BaseWeights {
  const { decoder } = checkpoint
  const tensors = new Map<string, { weight: string; bias?: string }>(
    decoderLinears(decoder).map((linear) => [linear.module, linear]),
  )
  tensors.set(decoder.embedding.module, { weight: decoder.embedding.weight })
  return async (module, part) => {
    const name = tensors.get(module)?.[part]
    return name === undefined ? undefined : checkpoint.readTensor(name)
  }
}
