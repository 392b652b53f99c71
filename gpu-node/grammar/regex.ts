/**
 * ECMAScript regular expressions (no flags) as grammars that match the whole text; `^` and `$` are accepted at its ends.
 * What a context-free grammar cannot say (lookaround, backreferences, word boundaries) is refused by name.
 */

import { ANY_CHAR, type CharSet, charSet, chars, complement, union, without } from './char-set.ts'
import { choice, type Expr, oneOf, repeat, sequence, text } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'

const MAX_DEPTH = 64
export const MAX_REPEAT = 10_000

const DIGITS = chars('0-9')
const WORD = chars('A-Za-z0-9_')
const SPACE = union(chars(' \t\n\r\f\v\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff'), charSet([0x2000, 0x200a]))
const LINE_ENDS = chars('\n\r\u2028\u2029')
const CLASS_ESCAPES: Readonly<Record<string, CharSet>> = {
  d: DIGITS,
  D: complement(DIGITS),
  w: WORD,
  W: complement(WORD),
  s: SPACE,
  S: complement(SPACE),
}
const CONTROL_ESCAPES: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11 }

export function regexToExpr(pattern: string): Expr {
  const parser = new RegexParser(pattern)
  const expr = parser.alternatives(0)
  if (!parser.atEnd) {
    throw parser.error('unmatched )')
  }
  return expr
}

class RegexParser {
  readonly #chars: string[]
  readonly #pattern: string
  #next = 0

  constructor(pattern: string) {
    this.#pattern = pattern
    this.#chars = [...pattern]
  }

  get atEnd(): boolean {
    return this.#next >= this.#chars.length
  }

  error(what: string): Error {
    const shown = this.#pattern.length > 80 ? `${this.#pattern.slice(0, 80)}…` : this.#pattern
    return grammarInvalid(`regular expression '${shown}': ${what} at character ${this.#next + 1}`)
  }

  alternatives(depth: number): Expr {
    if (depth > MAX_DEPTH) {
      throw this.error(`groups nested deeper than ${MAX_DEPTH}`)
    }
    const branches = [this.#branch(depth)]
    while (this.#take('|')) {
      branches.push(this.#branch(depth))
    }
    return choice(...branches)
  }

  #branch(depth: number): Expr {
    const items: Expr[] = []
    // An anchor inside a group would have to know what surrounds the group.
    if (depth === 0) {
      this.#take('^')
    }
    while (!this.atEnd && this.#peek() !== '|' && this.#peek() !== ')') {
      if (depth === 0 && this.#peek() === '$' && (this.#peek(1) === undefined || this.#peek(1) === '|')) {
        this.#next += 1
        continue
      }
      items.push(this.#quantified(this.#atom(depth)))
    }
    return sequence(...items)
  }

  #quantified(item: Expr): Expr {
    const times = this.#times()
    if (times === undefined) {
      return item
    }
    // Lazy or greedy makes no difference to which texts match.
    this.#take('?')
    if (this.#times() !== undefined) {
      throw this.error('nothing to repeat')
    }
    return repeat(item, times.min, times.max)
  }

  #times(): { min: number; max: number | undefined } | undefined {
    if (this.#take('*')) {
      return { min: 0, max: undefined }
    }
    if (this.#take('+')) {
      return { min: 1, max: undefined }
    }
    if (this.#take('?')) {
      return { min: 0, max: 1 }
    }
    const braces = /^\{(\d+)(,(\d*))?\}/.exec(this.#chars.slice(this.#next, this.#next + 24).join(''))
    if (braces === null) {
      return undefined
    }
    const min = Number(braces[1])
    const max = braces[2] === undefined ? min : braces[3] === '' ? undefined : Number(braces[3])
    if (min > MAX_REPEAT || (max ?? 0) > MAX_REPEAT) {
      throw this.error(`a repetition count above ${MAX_REPEAT}`)
    }
    if (max !== undefined && max < min) {
      throw this.error('a repetition whose maximum is below its minimum')
    }
    this.#next += braces[0].length
    return { min, max }
  }

  #atom(depth: number): Expr {
    const char = this.#read()
    switch (char) {
      case '.':
        return oneOf(without(ANY_CHAR, LINE_ENDS))
      case '(':
        return this.#group(depth)
      case '[':
        return oneOf(this.#set())
      case '\\': {
        const set = this.#escape(false)
        return oneOf(set)
      }
      case '^':
      case '$':
        throw this.error(`'${char}' elsewhere than at an end of the expression is not supported`)
      case '*':
      case '+':
      case '?':
        throw this.error('nothing to repeat')
      default:
        return text(char)
    }
  }

  #group(depth: number): Expr {
    if (this.#take('?')) {
      if (this.#take('<')) {
        if (this.#peek() === '=' || this.#peek() === '!') {
          throw this.error('lookbehind is not supported')
        }
        while (!this.atEnd && this.#read() !== '>') {
          // A group's name plays no part in what matches.
        }
      } else if (!this.#take(':')) {
        throw this.error(this.#peek() === '=' || this.#peek() === '!' ? 'lookahead is not supported' : 'unknown group')
      }
    }
    const inner = this.alternatives(depth + 1)
    if (!this.#take(')')) {
      throw this.error('a group is not closed')
    }
    return inner
  }

  #set(): CharSet {
    const negated = this.#take('^')
    const parts: CharSet[] = []
    while (this.#peek() !== ']') {
      if (this.atEnd) {
        throw this.error('a character class is not closed')
      }
      const low = this.#setMember()
      if (this.#peek() === '-' && this.#peek(1) !== ']' && this.#peek(1) !== undefined) {
        this.#next += 1
        const high = this.#setMember()
        const from = single(low)
        const to = single(high)
        if (from === undefined || to === undefined || from > to) {
          throw this.error('a character range is out of order')
        }
        parts.push(charSet([from, to]))
      } else {
        parts.push(low)
      }
    }
    this.#next += 1
    const set = union(...parts)
    return negated ? complement(set) : set
  }

  #setMember(): CharSet {
    const char = this.#read()
    return char === '\\' ? this.#escape(true) : point(char)
  }

  #escape(inSet: boolean): CharSet {
    if (this.atEnd) {
      throw this.error('an escape is not finished')
    }
    const char = this.#read()
    const known = CLASS_ESCAPES[char]
    if (known !== undefined) {
      return known
    }
    const control = CONTROL_ESCAPES[char]
    if (control !== undefined) {
      return charSet([control, control])
    }
    if (char === 'b' && inSet) {
      return charSet([8, 8])
    }
    if (char === 'x') {
      return this.#hex(/^[0-9a-fA-F]{2}/, 0)
    }
    if (char === 'u') {
      return this.#peek() === '{' ? this.#hex(/^\{[0-9a-fA-F]{1,6}\}/, 1) : this.#hex(/^[0-9a-fA-F]{4}/, 0)
    }
    if (/[A-Za-z0-9]/.test(char)) {
      throw this.error(`'\\${char}' is not supported`)
    }
    return point(char)
  }

  #hex(shape: RegExp, brace: number): CharSet {
    const digits = shape.exec(this.#chars.slice(this.#next, this.#next + 8).join(''))?.[0]
    if (digits === undefined) {
      throw this.error('a character escape is malformed')
    }
    this.#next += digits.length
    const value = Number.parseInt(digits.slice(brace, digits.length - brace), 16)
    const set = charSet([value, value])
    if (set.length === 0) {
      throw this.error('a character escape names no character (NUL and surrogates are refused)')
    }
    return set
  }

  #peek(ahead = 0): string | undefined {
    return this.#chars[this.#next + ahead]
  }

  #take(char: string): boolean {
    if (this.#peek() !== char) {
      return false
    }
    this.#next += 1
    return true
  }

  #read(): string {
    const char = this.#chars[this.#next]
    if (char === undefined) {
      throw this.error('the expression ends too soon')
    }
    this.#next += 1
    return char
  }
}

function point(char: string): CharSet {
  const value = char.codePointAt(0) ?? 0
  return charSet([value, value])
}

function single(set: CharSet): number | undefined {
  const [range] = set
  return set.length === 1 && range !== undefined && range[0] === range[1] ? range[0] : undefined
}
