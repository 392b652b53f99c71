/** Uniform numbers in [0, 1) that depend on their labels alone: the same labels, the same numbers, on any machine. */

import { createHash } from 'node:crypto'

/** sfc32 (PractRand's "small fast counter"), its state from SHA-256 over the labels. */
export function seededRandom(...labels: (string | number)[]): () => number {
  const state = createHash('sha256').update(JSON.stringify(labels)).digest()
  let a = state.readInt32LE(0)
  let b = state.readInt32LE(4)
  let c = state.readInt32LE(8)
  let counter = state.readInt32LE(12)
  return () => {
    const t = (a + b + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = ((c << 21) | (c >>> 11)) + t
    c |= 0
    return (t >>> 0) / 2 ** 32
  }
}
