/**
 * Regular expressions from adapter_config.json, written for Python's `re`, run on module names in JavaScript.
 * They come from anyone, so they run with a time limit: V8 can interrupt a match that backtracks for ever.
 */

import vm from 'node:vm'

/** All names of a large model take milliseconds. */
const TIME_LIMIT_MS = 1_000

export class PatternError extends Error {
  override readonly name = 'PatternError'
}

/** Python's syntax to JavaScript's where the two differ; what has no counterpart is refused. */
export function toJavaScriptPattern(pattern: string): { source: string; flags: string } {
  let flags = ''
  let rest = pattern
  const inline = /^\(\?([aimsux]+)\)/.exec(rest)
  if (inline !== null) {
    const wanted = inline[1]!
    if (/[mux]/.test(wanted.replace('u', ''))) {
      throw new PatternError(`the flags (?${wanted}) of '${shorten(pattern)}' have no counterpart here`)
    }
    flags = [...wanted].filter((letter) => letter === 'i' || letter === 's').join('')
    rest = rest.slice(inline[0].length)
  }
  const source = rest
    .replace(/\(\?P</g, '(?<')
    .replace(/\(\?P=(\w+)\)/g, '\\k<$1>')
    .replace(/(^|[^\\])((?:\\\\)*)\\A/g, '$1$2^')
    .replace(/(^|[^\\])((?:\\\\)*)\\Z/g, '$1$2$')
  if (/\(\?[a-z#(]|[*+?}]\+/.test(source.replace(/\\./g, ''))) {
    throw new PatternError(`'${shorten(pattern)}' uses syntax that has no counterpart here`)
  }
  return { source, flags }
}

/** What stands around each pattern, as JavaScript; the patterns are the strangers'. */
export interface Anchors {
  before: string
  after: string
}

/** Python's `re.fullmatch`. */
export const WHOLE: Anchors = { before: '^(?:', after: ')$' }

/** For each name: does any of `patterns` match, and which first? */
export function firstMatches(
  patterns: readonly string[],
  names: readonly string[],
  { before, after }: Anchors = WHOLE,
): (number | undefined)[] {
  if (patterns.length === 0) {
    return names.map(() => undefined)
  }
  const compiled = patterns.map((pattern) => {
    const { source, flags } = toJavaScriptPattern(pattern)
    try {
      return new RegExp(`${before}${source}${after}`, flags)
    } catch (cause) {
      throw new PatternError(`'${shorten(pattern)}' is no regular expression`, { cause })
    }
  })
  const found = names.map((): number | undefined => undefined)
  const run = () => {
    for (const [i, name] of names.entries()) {
      const first = compiled.findIndex((regex) => regex.test(name))
      found[i] = first < 0 ? undefined : first
    }
  }
  try {
    vm.runInNewContext('run()', { run }, { timeout: TIME_LIMIT_MS })
  } catch (cause) {
    throw new PatternError(`matching ${patterns.length} patterns took more than ${TIME_LIMIT_MS} ms`, { cause })
  }
  return found
}

function shorten(pattern: string): string {
  return pattern.slice(0, 120).replace(/[^\x20-\x7e]/g, '?')
}
