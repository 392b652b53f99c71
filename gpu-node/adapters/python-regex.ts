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

/**
 * Python's syntax to JavaScript's where the two differ; what has no counterpart is refused. Not a parser: what neither
 * language takes is left to JavaScript to refuse.
 */
export function toJavaScriptPattern(pattern: string): { source: string; flags: string } {
  const refuse = (what: string): never => {
    throw new PatternError(`${what} of '${shorten(pattern)}' has no counterpart here`)
  }
  const inline = /^\(\?([aimsux]+)\)/.exec(pattern)
  const wanted = inline?.[1] ?? ''
  if (/[mx]/.test(wanted)) {
    refuse(`the flags (?${wanted})`)
  }
  const flags = [...wanted].filter((letter) => letter === 'i' || letter === 's').join('')
  let rest = pattern.slice(inline?.[0].length ?? 0)
  let source = ''
  let inClass = false
  let afterQuantifier = false
  while (rest !== '') {
    const token: string = (inClass ? IN_CLASS : OUTSIDE).exec(rest)?.[0] ?? refuse(`'${rest.slice(0, 12)}'`)
    rest = rest.slice(token.length)
    source += inClass ? token : outsideClass(token, refuse)
    if (inClass) {
      inClass = token !== ']'
      continue
    }
    if (afterQuantifier && token === '+') {
      refuse('a possessive repetition')
    }
    afterQuantifier = /^(?:[*+?]|\{.*\d.*\}|\{,\})$/.test(token)
    inClass = token.startsWith('[')
  }
  return { source, flags }
}

/** One piece of a pattern. A `]` that comes first in a class is itself one of its characters. */
const OUTSIDE = /^(?:\\.|\[\^?\]?|\(\?P<|\(\?P=\w+\)|\(\?(?:[:=!]|<[=!])|\((?!\?)|\{\d*,?\d*\}|[^\\[(])/s
const IN_CLASS = /^(?:\\.|[^\\])/s

function outsideClass(token: string, refuse: (what: string) => never): string {
  switch (token) {
    case '\\A':
      return '^'
    case '\\Z':
    case '\\z':
      return '$'
    case '(?P<':
      return '(?<'
    case '{':
    case '{}':
      return token.replace('{', '\\{')
    default:
  }
  if (/^\\[0-9]/.test(token)) {
    refuse('a group named by its number')
  }
  if (token.startsWith('(?P=')) {
    return `\\k<${token.slice('(?P='.length, -1)}>`
  }
  if (token.startsWith('[')) {
    return token.replace(']', '\\]')
  }
  return token.replace(/^\{,/, '{0,')
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
