/**
 * An adapter's identity: SHA-256 over what it computes. Canonical config: each module's name, rank and scaling; tensors:
 * each part's dtype, shape and bytes as stored. So the same tensors in safetensors, zip or legacy pickle, with or without an
 * adapter name inside, are one adapter; another dtype, scaling or order of magnitude is another. File names, metadata, padding
 * and fields of the config without effect do not count.
 */

import { createHash } from 'node:crypto'
import type { RawTensor } from './raw-tensor.ts'
import type { TensorPart } from './tensor-names.ts'

export interface DigestModule {
  name: string
  /** Replaced modules have none. */
  rank: number | undefined
  scaling: number | undefined
  parts: ReadonlyMap<TensorPart, RawTensor>
}

/** A tree of depth two: the tensors' own hashes, then the hash over the sorted list of them. */
export function digestAdapter(modules: readonly DigestModule[]): string {
  const lines: string[] = []
  for (const { name, rank, scaling, parts } of modules) {
    lines.push(JSON.stringify(['module', name, rank ?? null, scaling ?? null]))
    for (const [part, tensor] of parts) {
      const hash = createHash('sha256').update(tensor.bytes).digest('hex')
      lines.push(JSON.stringify(['tensor', name, part, tensor.dtype, tensor.shape, hash]))
    }
  }
  return createHash('sha256')
    .update(`ringlet-adapter-1\n${lines.sort().join('\n')}`)
    .digest('hex')
}

/** Identity of a merge: what is merged and how. The parts' digests say everything about their content. */
export function digestMerge(recipe: readonly unknown[]): string {
  return createHash('sha256')
    .update(`ringlet-merge-1\n${JSON.stringify(recipe)}`)
    .digest('hex')
}
