/** Strings: length, pattern and format. */

import { choice, type Expr, NOTHING, type RuleBook, repeat } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { anyString, countableString, countedString, stringOf } from './json-text.ts'
import type { LengthNode } from './length-bounds.ts'
import { regexToExpr } from './regex.ts'
import type { SchemaObject } from './schema-keywords.ts'
import { countKeyword } from './schema-numbers.ts'
import { STRING_FORMATS } from './string-formats.ts'

/**
 * `place`: where lengths can be kept (length-bounds.ts), if they can. `onUnknownFormat` is told a format that is not
 * enforced; by default formats are annotations (JSON Schema 2020-12 §7.2.1).
 */
export function stringExpr(
  book: RuleBook,
  schema: SchemaObject,
  path: string,
  place: LengthNode | undefined,
  onUnknownFormat: (format: string) => void,
): Expr {
  const min = countKeyword(schema, 'minLength', path) ?? 0
  const max = countKeyword(schema, 'maxLength', path)
  const pattern = patternOf(schema, path, onUnknownFormat)
  if (pattern === undefined) {
    return lengthExpr(book, min, max, place)
  }
  const content = withLength(regexToExpr(pattern), min, max)
  if (content === undefined) {
    throw grammarInvalid(`${path}: this pattern together with minLength or maxLength is not supported`)
  }
  return stringOf(content)
}

function lengthExpr(book: RuleBook, min: number, max: number | undefined, place: LengthNode | undefined): Expr {
  if (max !== undefined && max < min) {
    return NOTHING
  }
  if (min === 0 && max === undefined) {
    return anyString(book)
  }
  if (place === undefined) {
    return countedString(book, min, max)
  }
  place.bound = { min, max }
  return countableString(book)
}

function patternOf(schema: SchemaObject, path: string, onUnknownFormat: (format: string) => void): string | undefined {
  const { pattern, format } = schema
  if (pattern !== undefined && typeof pattern !== 'string') {
    throw grammarInvalid(`${path}: 'pattern' must be a string`)
  }
  const known = typeof format === 'string' && Object.hasOwn(STRING_FORMATS, format) ? STRING_FORMATS[format] : undefined
  if (format !== undefined && known === undefined) {
    onUnknownFormat(String(format))
  }
  if (pattern !== undefined && known !== undefined) {
    throw grammarInvalid(`${path}: 'pattern' and 'format' together are not supported`)
  }
  return pattern ?? known
}

/** The texts of `expr` with at least `min` and at most `max` characters; `undefined` where no grammar of this kind says it. */
function withLength(expr: Expr, min: number, max: number | undefined): Expr | undefined {
  const length = lengthOf(expr)
  if (length.min >= min && (max === undefined || length.max <= max)) {
    return expr
  }
  if (length.min > (max ?? Number.POSITIVE_INFINITY) || length.max < min) {
    return NOTHING
  }
  if (expr.kind === 'repeat' && expr.item.kind === 'chars') {
    const most = Math.min(expr.max ?? Number.POSITIVE_INFINITY, max ?? Number.POSITIVE_INFINITY)
    return repeat(expr.item, Math.max(expr.min, min), Number.isFinite(most) ? most : undefined)
  }
  if (expr.kind === 'choice') {
    const branches = expr.items.map((item) => withLength(item, min, max))
    return branches.every((branch) => branch !== undefined) ? choice(...branches) : undefined
  }
  return undefined
}

/** Shortest and longest text, in characters. */
function lengthOf(expr: Expr): { min: number; max: number } {
  switch (expr.kind) {
    case 'text': {
      const length = [...expr.text].length
      return { min: length, max: length }
    }
    case 'chars':
      return { min: 1, max: 1 }
    case 'sequence': {
      const lengths = expr.items.map(lengthOf)
      return { min: sum(lengths.map((l) => l.min)), max: sum(lengths.map((l) => l.max)) }
    }
    case 'choice': {
      const lengths = expr.items.map(lengthOf)
      return { min: Math.min(...lengths.map((l) => l.min)), max: Math.max(...lengths.map((l) => l.max)) }
    }
    case 'repeat': {
      const item = lengthOf(expr.item)
      return { min: item.min * expr.min, max: item.max === 0 ? 0 : item.max * (expr.max ?? Number.POSITIVE_INFINITY) }
    }
    case 'rule':
    case 'dispatch':
      return { min: 0, max: Number.POSITIVE_INFINITY }
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, n) => total + n, 0)
}
