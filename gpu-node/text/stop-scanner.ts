/** Finds the first stop string in a text that arrives in pieces of any size. */

export interface StopScanner {
  /** Feed the next piece. After a match the scanner is spent. */
  push(text: string): StopScan
  /** What was held back, when the text ends without a match. */
  end(): string
}

export interface StopScan {
  /** Text that no stop string can reach any more, in order; pieces may come late, never twice. */
  released: string
  /** Set once: a stop string is complete. Its text and what follows are in neither `released`. */
  match?: { stop: string; after: string }
}

/**
 * The match is the one that is complete first; of those complete at the same character, the longest. Held back is only the
 * longest end of the text that begins some stop string.
 */
export function createStopScanner(stops: readonly string[]): StopScanner {
  let held = ''
  return {
    push: (text) => {
      const window = held + text
      const match = firstMatch(window, held.length, stops)
      if (match !== undefined) {
        held = ''
        const end = match.start + match.stop.length
        return { released: window.slice(0, match.start), match: { stop: match.stop, after: window.slice(end) } }
      }
      const keep = longestBeginning(window, stops)
      held = window.slice(window.length - keep)
      return { released: window.slice(0, window.length - keep) }
    },
    end: () => {
      const rest = held
      held = ''
      return rest
    },
  }
}

/** A match ends after `from`: nothing before it could be complete, or it would have matched earlier. */
function firstMatch(
  window: string,
  from: number,
  stops: readonly string[],
): { start: number; stop: string } | undefined {
  let best: { start: number; stop: string } | undefined
  for (const stop of stops) {
    const start = window.indexOf(stop, Math.max(0, from - stop.length + 1))
    if (start < 0) {
      continue
    }
    const end = start + stop.length
    const bestEnd = best === undefined ? Number.POSITIVE_INFINITY : best.start + best.stop.length
    if (end < bestEnd || (end === bestEnd && best !== undefined && start < best.start)) {
      best = { start, stop }
    }
  }
  return best
}

/** Length of the longest end of `window` that is the beginning of a stop string. */
function longestBeginning(window: string, stops: readonly string[]): number {
  let longest = 0
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, window.length); length > longest; length--) {
      if (window.endsWith(stop.slice(0, length))) {
        longest = length
      }
    }
  }
  return longest
}
