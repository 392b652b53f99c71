/** Keeps the strings of one sequence within their bounds: takes from each mask what would make one too long or too short. */

import { JsonTracker } from './json-tracker.ts'
import { collectBounds, type LengthNode } from './length-bounds.ts'
import type { TokenLengths } from './token-lengths.ts'

/** What all sequences of a grammar share. */
export interface GuardPlan {
  root: LengthNode
  openers: readonly number[]
}

export function planGuard(root: LengthNode, tokens: TokenLengths): GuardPlan {
  const bounds = collectBounds(root)
  const shortest = Math.min(...bounds.map((bound) => bound.max ?? Number.POSITIVE_INFINITY))
  return {
    root,
    openers: tokens.openers(
      shortest,
      bounds.some((bound) => bound.min > 0),
    ),
  }
}

export class LengthGuard {
  readonly #plan: GuardPlan
  readonly #tokens: TokenLengths
  readonly #tracker: JsonTracker

  constructor(plan: GuardPlan, tokens: TokenLengths) {
    this.#plan = plan
    this.#tokens = tokens
    this.#tracker = new JsonTracker(plan.root)
  }

  /** False: the token breaks a bound. */
  accept(tokenId: number): boolean {
    this.#tracker.push(this.#tokens.bytesOf(tokenId))
    return !this.#tracker.violated
  }

  restrict(mask: Int32Array): void {
    const { bound, length, escaped } = this.#tracker
    if (bound !== undefined) {
      const fits = bound.max === undefined ? undefined : this.#tokens.notLonger(bound.max - length, escaped)
      const early = this.#tokens.closesShorter(bound.min - length, escaped)
      for (let i = 0; i < mask.length; i++) {
        mask[i] = (mask[i] ?? 0) & (fits?.[i] ?? -1) & ~(early?.[i] ?? 0)
      }
    }
    for (const tokenId of this.#plan.openers) {
      const word = mask[tokenId >> 5] ?? 0
      const bit = 1 << (tokenId & 31)
      if ((word & bit) !== 0 && !this.#fits(tokenId)) {
        mask[tokenId >> 5] = word & ~bit
      }
    }
  }

  #fits(tokenId: number): boolean {
    const tracker = this.#tracker.clone()
    tracker.push(this.#tokens.bytesOf(tokenId))
    return !tracker.violated
  }
}
