/** What the attention kernel's functions share: the layout of their argument, and rotary embedding. */

import { at } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'

/** Addresses of inputs and output, in the argument that `store` and `attend` get. */
export const ARGUMENT = {
  q: 0,
  k: 8,
  v: 16,
  keys: 24,
  values: 32,
  tokens: 40,
  shape: 48,
  cos: 56,
  sin: 64,
  out: 72,
} as const

export interface Rotation {
  headSize: number
  rotaryHalf: number
  /** Registers with addresses: of the head, and of its token's cos and sin. */
  from: number
  cos: number
  sin: number
}

/**
 * Rotates a head (NeoX: element i with element i + half) and hands on each vector of it; uses vectors 0 … 5. What lies behind the
 * rotated part is handed on as it is.
 */
export function writeRotation(
  code: VectorAssembler,
  { headSize, rotaryHalf, from, cos, sin }: Rotation,
  take: (element: number, vector: number) => void,
): void {
  const [first, second, c, s, low, high] = [0, 1, 2, 3, 4, 5] as const
  for (let element = 0; element < rotaryHalf; element += code.lanes) {
    code.loadVector(first, at(from, element * 4))
    code.loadVector(second, at(from, (element + rotaryHalf) * 4))
    code.loadVector(c, at(cos, element * 4))
    code.loadVector(s, at(sin, element * 4))
    code.multiplyVector(low, first, c)
    code.multiplySubtractVector(low, second, s)
    code.multiplyVector(high, second, c)
    code.multiplyAddVector(high, first, s)
    take(element, low)
    take(element + rotaryHalf, high)
  }
  for (let element = 2 * rotaryHalf; element < headSize; element += code.lanes) {
    code.loadVector(first, at(from, element * 4))
    take(element, first)
  }
}
