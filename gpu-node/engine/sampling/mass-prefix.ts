/**
 * "The smallest items that hold this much mass" without sorting them all: items fall into equal bins of their key, and only
 * the bin in which the mass is reached gets sorted. Same result as the full sort.
 */

export interface MassPrefix {
  /** Key of the last item inside. */
  key: number
  /** Among items with that key, by index in the arrays, the last inside. */
  lastIndex: number
}

const BINS = 1024

/**
 * Orders items by key (ties by index) and returns the last one whose predecessors hold less than `mass` together.
 * `keys` are finite and ≥ 0, `weights` > 0; `count` ≥ 1 items are looked at.
 */
export function massPrefix(keys: Float32Array, weights: Float32Array, count: number, mass: number): MassPrefix {
  let largest = 0
  for (let i = 0; i < count; i++) {
    const key = keys[i] as number
    if (key > largest) {
      largest = key
    }
  }
  const scale = largest > 0 ? (BINS - 1) / largest : 0
  const massOfBin = new Float64Array(BINS)
  for (let i = 0; i < count; i++) {
    const bin = ((keys[i] as number) * scale) | 0
    massOfBin[bin] = (massOfBin[bin] as number) + (weights[i] as number)
  }
  // The bin in which the mass is reached; when rounding keeps it from being reached, the last that holds any.
  let crossing = 0
  let before = 0
  for (let bin = 0; bin < BINS && before < mass; bin++) {
    const inBin = massOfBin[bin] as number
    if (inBin > 0) {
      crossing = bin
    }
    before += inBin
  }
  const members: number[] = []
  let outside = 0
  for (let i = 0; i < count; i++) {
    const itsBin = ((keys[i] as number) * scale) | 0
    if (itsBin === crossing) {
      members.push(i)
    } else if (itsBin < crossing) {
      outside += weights[i] as number
    }
  }
  members.sort((a, b) => (keys[a] as number) - (keys[b] as number) || a - b)
  let last = members[0] as number
  for (const member of members) {
    if (outside >= mass) {
      break
    }
    last = member
    outside += weights[member] as number
  }
  return { key: keys[last] as number, lastIndex: last }
}
