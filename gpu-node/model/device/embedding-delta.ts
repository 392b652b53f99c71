/** What an adapter makes of token embeddings, by token: an addition, or a row of its own table in place of the base's. */

import { narrowToHalves } from '../../formats/to-float16.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED } from '../packed-parts.ts'

type Floats = Float32Array | Uint16Array

const ONE = 0x3c00

/** Writes `delta[at · hidden …]` and `keep[at]`. */
export function writeEmbeddingDelta(
  parts: PackedAdapter['parts'] | undefined,
  token: number,
  hidden: number,
  at: number,
  delta: Floats,
  keep: Floats,
): void {
  const row = new Float32Array(hidden)
  const saved = parts?.[EMBEDDING_SAVED]
  const a = parts?.[EMBEDDING_A]
  const b = parts?.[EMBEDDING_B]
  if (saved !== undefined) {
    row.set(saved.subarray(token * hidden, (token + 1) * hidden))
  } else if (a !== undefined && b !== undefined) {
    const rank = b.length / hidden
    for (let r = 0; r < rank; r++) {
      const factor = a[token * rank + r]!
      for (let i = 0; i < hidden; i++) {
        row[i]! += factor * b[r * hidden + i]!
      }
    }
  }
  if (delta instanceof Uint16Array) {
    narrowToHalves(row, delta, at * hidden)
    keep[at] = saved === undefined ? ONE : 0
  } else {
    delta.set(row, at * hidden)
    keep[at] = saved === undefined ? 1 : 0
  }
}
