/** Prints a grammar in xgrammar's EBNF (W3C notation, `#` comments, C escapes; TagDispatch for free text with triggers). */

import { ANY_CHAR, type CharSet, charSet, intersect, without } from './char-set.ts'
import type { Expr } from './expr.ts'
import { leftFactor } from './left-factor.ts'
import { type ByteRange, utf8Ranges } from './utf8-ranges.ts'

const ASCII = charSet([1, 0x7f])
const BEYOND_ASCII = without(ANY_CHAR, ASCII)

export function toEbnf(rules: ReadonlyMap<string, Expr>, root: Expr): string {
  const lines = [`root ::= ${print(leftFactor(root, rules), false)}`]
  for (const [name, expr] of rules) {
    lines.push(`${name} ::= ${print(leftFactor(expr, rules), false)}`)
  }
  return `${lines.join('\n')}\n`
}

function print(expr: Expr, nested: boolean): string {
  switch (expr.kind) {
    case 'text':
      return `"${[...expr.text].map(escapeInText).join('')}"`
    case 'chars':
      return printSet(expr.set, nested)
    case 'rule':
      return expr.name
    case 'sequence':
      return parenthesise(expr.items.map((item) => print(item, true)).join(' '), nested)
    case 'choice':
      return parenthesise(expr.items.map((item) => print(item, true)).join(' | '), nested)
    case 'repeat': {
      const item = print(expr.item, true)
      return `${expr.item.kind === 'repeat' ? `(${item})` : item}${printTimes(expr.min, expr.max)}`
    }
    case 'dispatch': {
      const tags = expr.tags.map((tag) => `(${print({ kind: 'text', text: tag.trigger }, true)}, ${tag.body})`)
      return `TagDispatch(${tags.join(', ')}, stop_eos=true, stop_str=(), loop_after_dispatch=${expr.again})`
    }
  }
}

function parenthesise(inner: string, nested: boolean): string {
  return nested ? `(${inner})` : inner
}

function printTimes(min: number, max: number | undefined): string {
  if (max === undefined) {
    return min === 0 ? '*' : min === 1 ? '+' : `{${min},}`
  }
  return min === 0 && max === 1 ? '?' : min === max ? `{${min}}` : `{${min},${max}}`
}

/**
 * xgrammar (0.1.27) takes classes with characters beyond ASCII as classes of bytes, unless they are negated and name only
 * ASCII, and a class of one character as that character. So: all of Unicode beyond ASCII is a negation, parts of it are the
 * bytes of their UTF-8, and one byte is written twice.
 */
function printSet(set: CharSet, nested: boolean): string {
  const ascii = intersect(set, ASCII)
  const beyond = intersect(set, BEYOND_ASCII)
  if (beyond.length === 0) {
    return printClass('', ascii)
  }
  if (sum(beyond) === sum(BEYOND_ASCII)) {
    return printClass('^\\u0000', without(ASCII, ascii))
  }
  const sequences = beyond.flatMap(([low, high]) =>
    utf8Ranges(low, high).map((bytes) => bytes.map(printByte).join(' ')),
  )
  return parenthesise([...(ascii.length === 0 ? [] : [printClass('', ascii)]), ...sequences].join(' | '), nested)
}

function printClass(start: string, set: CharSet): string {
  const ranges = set.map(([low, high]) =>
    low === high ? escapeInSet(low) : `${escapeInSet(low)}-${escapeInSet(high)}`,
  )
  return `[${start}${ranges.join('')}]`
}

function printByte([low, high]: ByteRange): string {
  const [from, to] = [low, high].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`)
  return low === high ? `[${from}${to}]` : `[${from}-${to}]`
}

function sum(set: CharSet): number {
  return set.reduce((total, [low, high]) => total + high - low + 1, 0)
}

function escapeInText(char: string): string {
  const point = char.codePointAt(0) ?? 0
  return point >= 0x20 && point < 0x7f && char !== '"' && char !== '\\' ? char : hexEscape(point)
}

function escapeInSet(point: number): string {
  const char = String.fromCodePoint(point)
  return /[A-Za-z0-9]/.test(char) ? char : hexEscape(point)
}

function hexEscape(point: number): string {
  return point > 0xffff ? `\\U${point.toString(16).padStart(8, '0')}` : `\\u${point.toString(16).padStart(4, '0')}`
}
