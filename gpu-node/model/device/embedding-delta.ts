/** What an adapter makes of token embeddings, by token: an addition, or a row of its own table in place of the base's. */

import type { PackedAdapter } from '../packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED } from '../packed-parts.ts'
import type { DeviceFloats } from './device-form.ts'
import { narrow, ONE_BITS } from './narrow.ts'

type Floats = Float32Array | Uint16Array

/** Writes `delta[at · hidden …]` and `keep[at]`. */
export function writeEmbeddingDelta(
  parts: PackedAdapter['parts'] | undefined,
  token: number,
  hidden: number,
  at: number,
  delta: Floats,
  keep: Floats,
  floats: DeviceFloats,
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
  if (floats !== 'float32' && delta instanceof Uint16Array) {
    narrow(row, delta, floats, at * hidden)
    keep[at] = saved === undefined ? ONE_BITS[floats] : 0
  } else {
    delta.set(row, at * hidden)
    keep[at] = saved === undefined ? 1 : 0
  }
}
