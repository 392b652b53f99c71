/** Numeric keywords: reading them, and the numbers they allow. */

import { chars } from './char-set.ts'
import { choice, type Expr, oneOf, optional, repeat, sequence, text } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { DIGIT, integer } from './json-text.ts'
import { type Bound, integerBetween, numberBetween } from './number-range.ts'
import type { SchemaObject } from './schema-keywords.ts'

/** Above this a count is as good as unbounded, and costs as much as its size to compile. */
const MAX_COUNT = 10_000

/** Of multiples of 10, 100 …: doubles hold every whole number of so many, so that a validator divides without a rest. */
const MAX_MULTIPLE_DIGITS = 15

/** A keyword that counts something. */
export function countKeyword(schema: SchemaObject, keyword: string, path: string): number | undefined {
  const value = schema[keyword]
  if (value === undefined) {
    return undefined
  }
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0) {
    throw grammarInvalid(`${path}: '${keyword}' must be a whole number of at least 0`)
  }
  if (value > MAX_COUNT && keyword.startsWith('min')) {
    throw grammarInvalid(`${path}: '${keyword}' is ${value}; at most ${MAX_COUNT} is supported`)
  }
  return value > MAX_COUNT ? undefined : value
}

export function numberExpr(schema: SchemaObject, type: 'integer' | 'number', path: string): Expr | undefined {
  const low = bound(schema, 'minimum', 'exclusiveMinimum', Math.max, path)
  const high = bound(schema, 'maximum', 'exclusiveMaximum', Math.min, path)
  const multiple = numberKeyword(schema, 'multipleOf', path)
  const bounded = low !== undefined || high !== undefined
  if (multiple !== undefined && !(type === 'integer' && multiple === 1)) {
    return multipleExpr(multiple, bounded, path)
  }
  if (!bounded) {
    return undefined
  }
  return type === 'integer' ? integerBetween(low, high) : numberBetween(low, high)
}

/** Multiples of a power of ten, which decimal digits show: 100 → `…00`, 0.01 → at most two decimals. */
function multipleExpr(multiple: number, bounded: boolean, path: string): Expr {
  const power = Math.round(Math.log10(multiple))
  if (bounded || Math.abs(power) > 9 || Number(`1e${power}`) !== multiple) {
    throw grammarInvalid(`${path}: 'multipleOf' is supported for powers of ten, without minimum or maximum`)
  }
  if (power <= 0) {
    return power === 0 ? integer() : sequence(integer(), optional(sequence(text('.'), repeat(DIGIT, 1, -power))))
  }
  const digits = repeat(DIGIT, 0, MAX_MULTIPLE_DIGITS - power - 1)
  const multiples = sequence(optional(text('-')), oneOf(chars('1-9')), digits, text('0'.repeat(power)))
  return choice(text('0'), multiples)
}

function bound(
  schema: SchemaObject,
  inclusive: string,
  exclusive: string,
  tighter: (a: number, b: number) => number,
  path: string,
): Bound | undefined {
  const closed = numberKeyword(schema, inclusive, path)
  // Draft 4 wrote `exclusiveMinimum: true` beside `minimum`.
  const open =
    schema[exclusive] === true
      ? closed
      : schema[exclusive] === false
        ? undefined
        : numberKeyword(schema, exclusive, path)
  if (open !== undefined && (closed === undefined || tighter(open, closed) === open)) {
    return { value: open, exclusive: true }
  }
  return closed === undefined ? undefined : { value: closed, exclusive: false }
}

function numberKeyword(schema: SchemaObject, keyword: string, path: string): number | undefined {
  const value = schema[keyword]
  if (value === undefined) {
    return undefined
  }
  if (typeof value !== 'number' || !Number.isFinite(value)) {
    throw grammarInvalid(`${path}: '${keyword}' must be a number`)
  }
  return value
}
