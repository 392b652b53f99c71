/** How many retries an isolate may make: a share of its requests, so that a failing fleet is not drowned in second tries. */

/** Each request earns a fifth of a retry. */
const EARNED_PER_REQUEST = 0.2
/** What a quiet isolate may spend at once, when a node dies under many requests. */
const RESERVE = 100
/** And earns back by time alone, each second. */
const EARNED_PER_SECOND = 5
const MOST = 1_000

export interface RetryBudget {
  noteRequest: () => void
  /** Takes one retry; `false` when none is left. */
  take: () => boolean
}

export function createRetryBudget(now: () => number): RetryBudget {
  let left = RESERVE
  let at = now()
  const earn = (amount: number) => {
    left = Math.min(MOST, left + amount)
  }
  return {
    noteRequest: () => earn(EARNED_PER_REQUEST),
    take: () => {
      const time = now()
      if (left < RESERVE) {
        earn(Math.min(RESERVE - left, ((time - at) / 1000) * EARNED_PER_SECOND))
      }
      at = time
      if (left < 1) {
        return false
      }
      left -= 1
      return true
    },
  }
}
