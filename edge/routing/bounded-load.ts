/** Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): may this node take one request more? */

/** A node may bear this much more than its share of what is in flight. */
export const LOAD_FACTOR = 1.25
/**
 * Below this many requests in flight a node is never over its bound: with three requests on eight nodes the mean says
 * nothing, and spreading them would only load their adapters in more places.
 */
export const IDLE_ALLOWANCE = 4

export interface LoadBound {
  loadFactor: number
  idleAllowance: number
}

export const DEFAULT_LOAD_BOUND: LoadBound = { loadFactor: LOAD_FACTOR, idleAllowance: IDLE_ALLOWANCE }

/**
 * Most requests in flight on a node whose weight is `weight` of `totalWeight`, with `totalInFlight` in all; the + 1 is the
 * request being placed. Example: 128 in flight on 8 equal nodes, factor 1.25: ceil(1.25 · 129 / 8) = 21.
 */
export function loadLimit(weight: number, totalWeight: number, totalInFlight: number, bound: LoadBound): number {
  const share = Math.ceil((bound.loadFactor * (totalInFlight + 1) * weight) / totalWeight)
  return Math.max(share, Math.min(bound.idleAllowance, weight))
}
