/** Which matcher thread serves a grammar. Pure: the service acts. */

export interface MatcherView {
  id: number
  /** Keys of the grammars compiled in it. */
  grammars: ReadonlyMap<string, unknown>
  /** The grammar it is compiling; nothing runs in it meanwhile. */
  compiling: string | undefined
  /** Sequences that may run in it. */
  leases: number
  /** Larger is later. */
  lastUsed: number
}

export type MatcherChoice =
  /** Has it compiled: use it now. */
  | { kind: 'use'; id: number }
  | { kind: 'compile'; id: number }
  | { kind: 'start' }
  /** Look again when something has changed: a compile is done, or the last sequence of a thread has ended. */
  | { kind: 'wait' }

/** Threads that are started before one that already has grammars is given another: it would keep them from their users. */
const SPREAD = 2

/**
 * A compile holds its thread, so it goes to one without sequences. Of those the one with the fewest grammars, used longest
 * ago: what is asked for often keeps its place. A thread that compiles something else is waited for rather than compiling the
 * same twice.
 */
export function chooseMatcher(matchers: readonly MatcherView[], key: string, maxMatchers: number): MatcherChoice {
  const holders = matchers.filter((matcher) => matcher.grammars.has(key))
  const ready = holders.filter((matcher) => matcher.compiling === undefined)
  const busiest = ready.sort((a, b) => b.leases - a.leases)[0]
  if (busiest !== undefined) {
    return { kind: 'use', id: busiest.id }
  }
  if (holders.length > 0 || matchers.some((matcher) => matcher.compiling === key)) {
    return { kind: 'wait' }
  }
  const idle = matchers.filter((matcher) => matcher.leases === 0 && matcher.compiling === undefined)
  const emptiest = idle.sort((a, b) => a.grammars.size - b.grammars.size || a.lastUsed - b.lastUsed)[0]
  if (emptiest !== undefined && (emptiest.grammars.size === 0 || matchers.length >= Math.min(SPREAD, maxMatchers))) {
    return { kind: 'compile', id: emptiest.id }
  }
  return matchers.length < maxMatchers ? { kind: 'start' } : { kind: 'wait' }
}
