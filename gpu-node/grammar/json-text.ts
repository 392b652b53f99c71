/**
 * The words of JSON (RFC 8259) as grammar rules. Where JSON leaves the writer free without bound, a bound is set, so that a
 * weak model cannot write for ever: one whitespace character at a time, numbers of at most 16 + 16 digits.
 */

import { ANY_CHAR, type CharSet, charSet, chars, intersect, without } from './char-set.ts'
import { choice, type Expr, oneOf, optional, type RuleBook, repeat, sequence, text } from './expr.ts'

/** Digits after the first one, and in a fraction. 17 digits already name any double. */
const MAX_MORE_DIGITS = 15
const MAX_FRACTION_DIGITS = 16

/** Characters that stand in a JSON string for themselves; DEL and the line separators are legal too. */
const PLAIN = without(ANY_CHAR, charSet([1, 0x1f], [0x22, 0x22], [0x5c, 0x5c]))
const SHORT_ESCAPES: readonly (readonly [number, string])[] = [
  [0x22, '\\"'],
  [0x5c, '\\\\'],
  [0x0a, '\\n'],
  [0x0d, '\\r'],
  [0x09, '\\t'],
  [0x08, '\\b'],
  [0x0c, '\\f'],
]

const HEX = chars('0-9A-Fa-f')
const QUOTE = text('"')
export const DIGIT = oneOf(chars('0-9'))

/** Written out at each place: xgrammar sees what follows a part that is used once, and that keeps its masks cheap. */
export const WHITESPACE = optional(oneOf(chars(' \n\t')))

/** Recursive rather than repeated: measured at 0.2 ms a mask for 32,000 tokens, against 9 ms for `(char | escape)*`. */
export function anyString(book: RuleBook): Expr {
  const rest: Expr = { kind: 'rule', name: 'string_rest' }
  book.rule('string_rest', () =>
    choice(QUOTE, sequence(oneOf(PLAIN), rest), sequence(text('\\'), book.rule('escape', escapeSequence), rest)),
  )
  return book.rule('string', () => sequence(QUOTE, rest))
}

/** An escaped surrogate pair is one character; half a pair is none. */
function escapeSequence(): Expr {
  const hex = oneOf(HEX)
  const d = oneOf(chars('Dd'))
  return choice(
    oneOf(chars('"\\/bfnrt')),
    sequence(
      text('u'),
      choice(
        sequence(oneOf(chars('0-9A-CE-Fa-ce-f')), hex, hex, hex),
        sequence(d, oneOf(chars('0-7')), hex, hex),
        sequence(d, oneOf(chars('89ABab')), hex, hex, text('\\u'), d, oneOf(chars('C-Fc-f')), hex, hex),
      ),
    ),
  )
}

/** Without `\\u`, so that each character is at most two bytes of escape: the length is kept elsewhere (length-bounds.ts). */
export function countableString(book: RuleBook): Expr {
  const char = choice(oneOf(PLAIN), sequence(text('\\'), oneOf(chars('"\\/bfnrt'))))
  return book.rule('string_countable', () => sequence(QUOTE, repeat(char, 0), QUOTE))
}

/** One rule for each pair of bounds, and no escapes, which would treble the time to compile. */
export function countedString(book: RuleBook, minLength: number, maxLength: number | undefined): Expr {
  return book.rule(`string_${minLength}_${maxLength ?? ''}`, () =>
    sequence(QUOTE, repeat(oneOf(PLAIN), minLength, maxLength), QUOTE),
  )
}

/** A string whose content, unescaped, matches `content`. */
export function stringOf(content: Expr): Expr {
  return sequence(QUOTE, escapeContent(content), QUOTE)
}

function escapeContent(expr: Expr): Expr {
  switch (expr.kind) {
    case 'text':
      return text(JSON.stringify(expr.text).slice(1, -1))
    case 'chars':
      return escapeChars(expr.set)
    case 'sequence':
      return sequence(...expr.items.map(escapeContent))
    case 'choice':
      return choice(...expr.items.map(escapeContent))
    case 'repeat':
      return repeat(escapeContent(expr.item), expr.min, expr.max)
    case 'rule':
    case 'dispatch':
      throw new TypeError('only a self-contained expression can be put in a JSON string')
  }
}

function escapeChars(set: CharSet): Expr {
  const escaped = SHORT_ESCAPES.filter(([point]) => intersect(set, charSet([point, point])).length > 0)
  return choice(oneOf(intersect(set, PLAIN)), ...escaped.map(([, spelling]) => text(spelling)))
}

/**
 * A string that is none of `names`: the tree of the names' characters, left at some character or in the middle. Without
 * escapes, so that no name can come back in another spelling.
 */
export function stringExcept(book: RuleBook, names: readonly string[]): Expr {
  if (names.length === 0) {
    return anyString(book)
  }
  const rest = book.rule('plain', () => repeat(oneOf(PLAIN), 0))
  const tree = (suffixes: readonly string[][]): Expr => {
    const byFirst = new Map<string, string[][]>()
    for (const [first, ...tail] of suffixes) {
      if (first !== undefined) {
        byFirst.set(first, [...(byFirst.get(first) ?? []), tail])
      }
    }
    const points = [...byFirst.keys()].map((char): [number, number] => [
      char.codePointAt(0) ?? 0,
      char.codePointAt(0) ?? 0,
    ])
    const isName = suffixes.some((suffix) => suffix.length === 0)
    return choice(
      ...(isName ? [] : [text('')]),
      sequence(oneOf(without(PLAIN, charSet(...points))), rest),
      ...[...byFirst].map(([first, tails]) => sequence(oneOf(intersect(PLAIN, chars(first))), tree(tails))),
    )
  }
  return sequence(QUOTE, tree(names.map((name) => [...name])), QUOTE)
}

export function integer(): Expr {
  return sequence(optional(text('-')), unsignedInteger())
}

export function unsignedInteger(): Expr {
  return choice(text('0'), sequence(oneOf(chars('1-9')), repeat(DIGIT, 0, MAX_MORE_DIGITS)))
}

export function fraction(maxDigits = MAX_FRACTION_DIGITS): Expr {
  return optional(sequence(text('.'), repeat(DIGIT, 1, maxDigits)))
}

export function number(): Expr {
  const exponent = optional(sequence(oneOf(chars('eE')), optional(oneOf(chars('+-'))), repeat(DIGIT, 1, 2)))
  return sequence(integer(), fraction(), exponent)
}

export function integerRule(book: RuleBook): Expr {
  return book.rule('integer', integer)
}

export function numberRule(book: RuleBook): Expr {
  return book.rule('number', number)
}

export function booleanRule(book: RuleBook): Expr {
  return book.rule('boolean', () => choice(text('true'), text('false')))
}

export function anyValue(book: RuleBook): Expr {
  return book.rule('value', () =>
    choice(anyObject(book), anyArray(book), anyString(book), numberRule(book), booleanRule(book), text('null')),
  )
}

export function anyObject(book: RuleBook): Expr {
  return book.rule('object', () => objectOf(book, pair(anyString(book), anyValue(book)), 0, undefined))
}

export function anyArray(book: RuleBook): Expr {
  return book.rule('array', () => arrayOf(book, anyValue(book), 0, undefined))
}

export function pair(key: Expr, value: Expr): Expr {
  return sequence(key, text(':'), WHITESPACE, value)
}

export const COMMA = sequence(text(','), WHITESPACE)

/** `content` is what stands between the brackets when there is something; `mayBeEmpty` allows nothing. */
export function bracketed(open: string, close: string, content: Expr, mayBeEmpty: boolean): Expr {
  const filled = sequence(WHITESPACE, content, WHITESPACE, text(close))
  return sequence(text(open), choice(filled, ...(mayBeEmpty ? [text(close)] : [])))
}

export function objectOf(book: RuleBook, member: Expr, min: number, max: number | undefined): Expr {
  return bracketed('{', '}', listOf(book, member, min, max), min === 0)
}

export function arrayOf(book: RuleBook, item: Expr, min: number, max: number | undefined): Expr {
  return bracketed('[', ']', listOf(book, item, min, max), min === 0)
}

/** One item or more, at least `min` and at most `max`, with commas between. */
export function listOf(book: RuleBook, item: Expr, min: number, max: number | undefined): Expr {
  const shared = book.share('item', item)
  const more = repeat(sequence(COMMA, shared), Math.max(0, min - 1), max === undefined ? undefined : max - 1)
  return max === 0 ? { kind: 'choice', items: [] } : sequence(shared, more)
}

/** Exactly this value, object keys in their order. */
export function literal(value: unknown): Expr {
  if (Array.isArray(value)) {
    return value.length === 0 ? text('[]') : bracketed('[', ']', separated(value.map(literal)), false)
  }
  if (typeof value === 'object' && value !== null) {
    const members = Object.entries(value).map(([key, member]) => pair(text(JSON.stringify(key)), literal(member)))
    return members.length === 0 ? text('{}') : bracketed('{', '}', separated(members), false)
  }
  return text(JSON.stringify(value))
}

export function separated(items: readonly Expr[]): Expr {
  return sequence(...items.flatMap((item, i) => (i === 0 ? [item] : [COMMA, item])))
}
