/** Objects: properties in the order of the schema, what is optional left out or not, then whatever else may come. */

import {
  choice,
  EMPTY,
  type Expr,
  isNothing,
  NOTHING,
  optional,
  type RuleBook,
  repeat,
  sequence,
  text,
} from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { anyString, anyValue, bracketed, COMMA, objectOf, pair, stringExcept, stringOf } from './json-text.ts'
import { type LengthNode, propertyNode } from './length-bounds.ts'
import { regexToExpr } from './regex.ts'
import type { SchemaObject } from './schema-keywords.ts'
import { isObject } from './schema-merge.ts'
import { countKeyword } from './schema-numbers.ts'

/** Compiles a schema found below this object; `place` is its place for lengths. */
export type SubSchema = (schema: unknown, path: string, place: LengthNode | undefined) => Expr

export function objectExpr(
  book: RuleBook,
  schema: SchemaObject,
  path: string,
  place: LengthNode | undefined,
  sub: SubSchema,
): Expr {
  const required = requiredNames(schema, path)
  const named = properties(schema, required, path)
  const min = countKeyword(schema, 'minProperties', path) ?? 0
  const max = countKeyword(schema, 'maxProperties', path)
  if (named.length === 0) {
    return freeObject(book, schema, min, max, path, place, sub)
  }
  refuseBeside(schema, 'patternProperties', path)
  refuseBeside(schema, 'propertyNames', path)
  const extra = extraMember(book, schema, named, path, place, sub)
  if (
    min > required.size ||
    (max !== undefined && max < (isNothing(extra) ? named.length : Number.POSITIVE_INFINITY))
  ) {
    throw grammarInvalid(`${path}: minProperties and maxProperties beside 'properties' are not supported`)
  }
  const members = named.map(([name, value]) => {
    const member = pair(
      text(JSON.stringify(name)),
      sub(value, `${path}/properties/${name}`, place && propertyNode(place, name)),
    )
    return { member: book.share('p', member), required: required.has(name) }
  })
  return bracketed('{', '}', memberList(book, members, extra), required.size === 0)
}

interface Member {
  member: Expr
  required: boolean
}

/** One member or more. `tails[i]` is what may follow once something stands before member i. */
function memberList(book: RuleBook, members: readonly Member[], extra: Expr): Expr {
  const moreExtra = repeat(sequence(COMMA, extra), 0)
  const tails: Expr[] = [moreExtra]
  for (const { member, required } of members.toReversed()) {
    const next = sequence(COMMA, member)
    const tail = sequence(required ? next : optional(next), tails[0] ?? EMPTY)
    tails.unshift(book.share('tail', tail))
  }
  const starts: Expr[] = []
  for (const [i, { member, required }] of members.entries()) {
    starts.push(sequence(member, tails[i + 1] ?? EMPTY))
    if (required) {
      return choice(...starts)
    }
  }
  return choice(...starts, sequence(extra, moreExtra))
}

function freeObject(
  book: RuleBook,
  schema: SchemaObject,
  min: number,
  max: number | undefined,
  path: string,
  place: LengthNode | undefined,
  sub: SubSchema,
): Expr {
  if (min > 1) {
    throw grammarInvalid(`${path}: minProperties above 1 needs 'properties' (names could repeat)`)
  }
  const patterns = patternProperties(schema, path)
  const additional = schema.additionalProperties ?? true
  if (patterns !== undefined) {
    refuseBeside(schema, 'propertyNames', path)
    if (schema.additionalProperties !== false && schema.additionalProperties !== undefined) {
      throw grammarInvalid(`${path}: patternProperties is supported with additionalProperties: false only`)
    }
    const [pattern, value] = patterns
    const member = pair(stringOf(regexToExpr(pattern)), sub(value, `${path}/patternProperties`, additionalNode(place)))
    return objectOf(book, member, min, max)
  }
  if (additional === false) {
    return min === 0 ? text('{}') : NOTHING
  }
  const key = schema.propertyNames === undefined ? anyString(book) : keyExpr(schema.propertyNames, path, sub)
  const value =
    additional === true ? anyValue(book) : sub(additional, `${path}/additionalProperties`, additionalNode(place))
  return objectOf(book, pair(key, value), min, max)
}

function keyExpr(names: unknown, path: string, sub: SubSchema): Expr {
  const asString = isObject(names) ? { type: 'string', ...names } : names
  // A name is no value: its length is counted in the grammar.
  return sub(asString, `${path}/propertyNames`, undefined)
}

function additionalNode(place: LengthNode | undefined): LengthNode | undefined {
  if (place !== undefined) {
    place.additional ??= {}
  }
  return place?.additional
}

/** A member that the schema does not name; none unless the schema asks for it, since without is valid too. */
function extraMember(
  book: RuleBook,
  schema: SchemaObject,
  named: readonly (readonly [string, unknown])[],
  path: string,
  place: LengthNode | undefined,
  sub: SubSchema,
): Expr {
  const additional = schema.additionalProperties ?? false
  if (additional === false) {
    return NOTHING
  }
  const value =
    additional === true ? anyValue(book) : sub(additional, `${path}/additionalProperties`, additionalNode(place))
  const names = named.map(([name]) => name)
  return book.share('extra', pair(stringExcept(book, names), value))
}

/** Required names that `properties` lacks fall under `additionalProperties`. */
function properties(schema: SchemaObject, required: ReadonlySet<string>, path: string): [string, unknown][] {
  const given = schema.properties ?? {}
  if (!isObject(given)) {
    throw grammarInvalid(`${path}: 'properties' must be an object`)
  }
  const unnamed = [...required].filter((name) => !Object.hasOwn(given, name))
  return [
    ...Object.entries(given),
    ...unnamed.map((name): [string, unknown] => [name, schema.additionalProperties ?? true]),
  ]
}

function requiredNames(schema: SchemaObject, path: string): Set<string> {
  const names = schema.required ?? []
  if (!Array.isArray(names) || !names.every((name) => typeof name === 'string')) {
    throw grammarInvalid(`${path}: 'required' must be a list of names`)
  }
  return new Set(names)
}

function patternProperties(schema: SchemaObject, path: string): [string, unknown] | undefined {
  if (schema.patternProperties === undefined) {
    return undefined
  }
  const entries = isObject(schema.patternProperties) ? Object.entries(schema.patternProperties) : []
  const [only] = entries
  if (entries.length !== 1 || only === undefined) {
    throw grammarInvalid(`${path}: patternProperties is supported with exactly one pattern`)
  }
  return only
}

function refuseBeside(schema: SchemaObject, keyword: string, path: string): void {
  if (schema[keyword] !== undefined) {
    throw grammarInvalid(`${path}: '${keyword}' beside other property keywords is not supported`)
  }
}
