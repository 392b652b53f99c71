/** Sets of Unicode characters as sorted, disjoint, non-adjacent code point ranges; surrogates are not characters. */

export type CharSet = readonly (readonly [number, number])[]

const MAX_CODE_POINT = 0x10ffff
const FIRST_SURROGATE = 0xd800
const LAST_SURROGATE = 0xdfff

/** Every character but NUL, which no text that a model writes needs and which ends strings in too many places. */
export const ANY_CHAR: CharSet = [
  [1, FIRST_SURROGATE - 1],
  [LAST_SURROGATE + 1, MAX_CODE_POINT],
]

export function charSet(...ranges: readonly (readonly [number, number])[]): CharSet {
  const sorted = [...ranges].sort((a, b) => a[0] - b[0])
  const merged: [number, number][] = []
  for (const [low, high] of sorted) {
    const last = merged.at(-1)
    if (last !== undefined && low <= last[1] + 1) {
      last[1] = Math.max(last[1], high)
    } else {
      merged.push([low, high])
    }
  }
  return intersect(merged, ANY_CHAR)
}

/** `'a-z'`, `'09'`, `'-'`: a `-` between two characters makes a range, anywhere else it is itself. */
export function chars(spelling: string): CharSet {
  const points = [...spelling].map((char) => char.codePointAt(0) ?? 0)
  const ranges: [number, number][] = []
  for (let i = 0; i < points.length; i++) {
    const low = points[i] ?? 0
    const high = points[i + 2]
    if (points[i + 1] === 0x2d && high !== undefined) {
      ranges.push([low, high])
      i += 2
    } else {
      ranges.push([low, low])
    }
  }
  return charSet(...ranges)
}

export function union(...sets: readonly CharSet[]): CharSet {
  return charSet(...sets.flat())
}

export function intersect(a: CharSet, b: CharSet): CharSet {
  const result: [number, number][] = []
  for (const [lowA, highA] of a) {
    for (const [lowB, highB] of b) {
      const low = Math.max(lowA, lowB)
      const high = Math.min(highA, highB)
      if (low <= high) {
        result.push([low, high])
      }
    }
  }
  return result
}

export function complement(set: CharSet): CharSet {
  const gaps: [number, number][] = []
  let next = 1
  for (const [low, high] of set) {
    if (low > next) {
      gaps.push([next, low - 1])
    }
    next = high + 1
  }
  if (next <= MAX_CODE_POINT) {
    gaps.push([next, MAX_CODE_POINT])
  }
  return intersect(gaps, ANY_CHAR)
}

export function without(set: CharSet, removed: CharSet): CharSet {
  return intersect(set, complement(removed))
}
