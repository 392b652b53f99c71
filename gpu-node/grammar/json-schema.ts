/**
 * JSON Schema as a grammar. Every text that the grammar matches is valid JSON and valid under the schema; not every valid
 * text is matched (properties come in the schema's order, whitespace is short, numbers are of sensible length).
 *
 * xgrammar's own converter is not used: it lets through what is no JSON (`1"5` for a number with a fractional bound, control
 * characters in strings with a length), ignores keywords without a word, and answers a bad schema by aborting.
 */

import { choice, type Expr, isNothing, NOTHING, type RuleBook, repeat, sequence, text } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import {
  anyArray,
  anyObject,
  anyValue,
  arrayOf,
  booleanRule,
  bracketed,
  COMMA,
  integerRule,
  literal,
  numberRule,
} from './json-text.ts'
import { collectBounds, type LengthNode } from './length-bounds.ts'
import {
  constrains,
  JSON_TYPES,
  type JsonType,
  type SchemaObject,
  TYPE_OF_KEYWORD,
  unenforced,
} from './schema-keywords.ts'
import { IMPOSSIBLE, isObject, mergeSchemas, sameJson } from './schema-merge.ts'
import { countKeyword, numberExpr } from './schema-numbers.ts'
import { objectExpr } from './schema-object.ts'
import { stringExpr } from './schema-strings.ts'
import { disjoint } from './schema-union.ts'

const MAX_DEPTH = 64
const MAX_SCHEMAS = 20_000
const MAX_BRANCHES = 256

export interface SchemaOptions {
  /** True: a keyword that cannot be enforced is refused. False: it is left to the model and named in `notEnforced`. */
  strict: boolean
  /** The text is this JSON value and nothing else, so that lengths of strings can be kept beside the grammar. */
  keepLengths: boolean
}

export interface CompiledSchema {
  expr: Expr
  /** Bounds of strings that the grammar leaves to the length guard. */
  lengths: LengthNode | undefined
  notEnforced: string[]
}

export function schemaToExpr(book: RuleBook, schema: unknown, options: SchemaOptions): CompiledSchema {
  const compiler = new SchemaCompiler(book, schema, options)
  const root: LengthNode = {}
  const expr = compiler.compile(schema, '#', options.keepLengths ? root : undefined)
  const lengths = collectBounds(root).length > 0 ? root : undefined
  return { expr, lengths, notEnforced: [...compiler.notEnforced] }
}

class SchemaCompiler {
  readonly notEnforced = new Set<string>()
  readonly #book: RuleBook
  readonly #root: unknown
  readonly #strict: boolean
  /** Names of two schemas' rules must differ when both go into one book (tools). */
  readonly #prefix: string
  /** Of the targets of references. */
  readonly #places = new Map<string, LengthNode>()
  #seen = 0

  constructor(book: RuleBook, root: unknown, options: SchemaOptions) {
    this.#book = book
    this.#root = root
    this.#strict = options.strict
    this.#prefix = `s${book.rules.size}_`
  }

  /** `place`: where in the text this is, while that is certain. */
  compile(schema: unknown, path: string, place: LengthNode | undefined): Expr {
    this.#seen += 1
    if (path.split('/').length > MAX_DEPTH || this.#seen > MAX_SCHEMAS) {
      throw grammarInvalid(`the schema is nested deeper than ${MAX_DEPTH} or has more than ${MAX_SCHEMAS} parts`)
    }
    if (typeof schema === 'boolean') {
      return schema ? anyValue(this.#book) : NOTHING
    }
    if (!isObject(schema)) {
      throw grammarInvalid(`${path}: a schema is an object, true or false`)
    }
    const keywords = Object.keys(schema).filter(constrains)
    const [only] = keywords
    if (keywords.length === 1 && only === '$ref') {
      return this.#reference(schema, path, place)
    }
    if (keywords.length === 1 && (only === 'anyOf' || only === 'oneOf')) {
      const branches = this.#branches(schema, only, path)
      const certain = branches.filter((branch) => !isScalar(branch)).length < 2 ? place : undefined
      return choice(...branches.map((branch, i) => this.compile(branch, `${path}/${only}/${i}`, certain)))
    }
    const alternatives = this.#expand(schema, path, 0)
    const certain = alternatives.length < 2 ? place : undefined
    return choice(...alternatives.map((plain) => this.#plain(plain, path, certain)))
  }

  /** References become rules, so that a schema may contain itself; one rule for certain places and one for others. */
  #reference(schema: SchemaObject, path: string, place: LengthNode | undefined): Expr {
    const pointer = String(schema.$ref)
    const target = this.#resolve(pointer, path)
    const name = `${this.#prefix}${ruleName(pointer)}`
    if (place === undefined) {
      return this.#book.rule(`${name}_counted`, () => this.compile(target, pointer, undefined))
    }
    const known = this.#places.get(pointer) ?? {}
    this.#places.set(pointer, known)
    place.same = known
    return this.#book.rule(name, () => this.compile(target, pointer, known))
  }

  #resolve(pointer: string, path: string): unknown {
    if (pointer !== '#' && !pointer.startsWith('#/')) {
      throw grammarInvalid(`${path}: $ref '${pointer.slice(0, 80)}' must start with '#': nothing is fetched`)
    }
    let target = this.#root
    for (const step of pointer.split('/').slice(1)) {
      const key = decodeStep(step)
      const inside = isObject(target) || Array.isArray(target) ? target : {}
      if (!Object.hasOwn(inside, key)) {
        throw grammarInvalid(`${path}: $ref '${pointer.slice(0, 80)}' points to nothing`)
      }
      target = (inside as SchemaObject)[key]
    }
    return target
  }

  #branches(schema: SchemaObject, keyword: 'anyOf' | 'oneOf', path: string): readonly unknown[] {
    const branches = schema[keyword]
    if (!Array.isArray(branches) || branches.length === 0) {
      throw grammarInvalid(`${path}: '${keyword}' must be a list with at least one schema`)
    }
    if (keyword === 'oneOf' && !disjoint(branches, (ref) => this.#resolve(ref, path))) {
      this.#cannotEnforce(`${path}/oneOf`, 'that exactly one branch holds; use anyOf')
    }
    return branches
  }

  /** The schema as alternatives that have no `$ref`, `allOf`, `anyOf` or `oneOf` of their own. */
  #expand(schema: unknown, path: string, depth: number): SchemaObject[] {
    if (depth > MAX_DEPTH) {
      throw grammarInvalid(`${path}: the schema refers to itself without end`)
    }
    if (schema === true) {
      return [{}]
    }
    if (!isObject(schema)) {
      return schema === false ? [] : this.#notASchema(path)
    }
    const { $ref, allOf, anyOf, oneOf, ...own } = schema
    let plain: SchemaObject[] = [own]
    const intersectWith = (alternatives: readonly SchemaObject[]): void => {
      plain = plain.flatMap((left) => alternatives.map((right) => mergeSchemas(left, right, path)))
      if (plain.length > MAX_BRANCHES) {
        throw grammarInvalid(`${path}: more than ${MAX_BRANCHES} combinations of anyOf and allOf`)
      }
    }
    if ($ref !== undefined) {
      intersectWith(this.#expand(this.#resolve(String($ref), path), path, depth + 1))
    }
    for (const part of allOf === undefined ? [] : Array.isArray(allOf) ? allOf : this.#notASchema(path)) {
      intersectWith(this.#expand(part, path, depth + 1))
    }
    for (const keyword of ['anyOf', 'oneOf'] as const) {
      if (schema[keyword] !== undefined) {
        const branches = this.#branches(schema, keyword, path)
        intersectWith(branches.flatMap((branch) => this.#expand(branch, path, depth + 1)))
      }
    }
    return plain
  }

  #notASchema(path: string): never {
    throw grammarInvalid(`${path}: a schema is an object, true or false`)
  }

  #plain(schema: SchemaObject, path: string, place: LengthNode | undefined): Expr {
    for (const keyword of unenforced(schema)) {
      this.#cannotEnforce(`${path}/${keyword}`, `'${keyword}'`)
    }
    if (sameJson(schema, IMPOSSIBLE)) {
      return NOTHING
    }
    const types = typesOf(schema, path)
    if (schema.enum !== undefined || schema.const !== undefined) {
      return this.#literals(schema, types, path)
    }
    if (types === undefined) {
      return anyValue(this.#book)
    }
    return choice(...types.map((type) => this.#typed(schema, type, path, place)))
  }

  #literals(schema: SchemaObject, types: readonly JsonType[] | undefined, path: string): Expr {
    const listed = schema.enum ?? [schema.const]
    if (!Array.isArray(listed)) {
      throw grammarInvalid(`${path}: 'enum' must be a list`)
    }
    const wanted = listed.filter((value) => ('const' in schema ? sameJson(value, schema.const) : true))
    const beside = Object.keys(schema).find((keyword) => {
      const about = TYPE_OF_KEYWORD.get(keyword)
      return about !== undefined && keyword !== 'format' && wanted.some((value) => isOfType(value, about))
    })
    if (beside !== undefined) {
      this.#cannotEnforce(`${path}/${beside}`, `'${beside}' beside 'enum' or 'const'; leave out the values it excludes`)
    }
    const allowed = wanted.filter((value) => types === undefined || types.some((type) => isOfType(value, type)))
    return choice(...allowed.map((value) => literal(value)))
  }

  #typed(schema: SchemaObject, type: JsonType, path: string, place: LengthNode | undefined): Expr {
    const book = this.#book
    switch (type) {
      case 'null':
        return text('null')
      case 'boolean':
        return booleanRule(book)
      case 'integer':
        return numberExpr(schema, type, path) ?? integerRule(book)
      case 'number':
        return numberExpr(schema, type, path) ?? numberRule(book)
      case 'string':
        return stringExpr(book, schema, path, place, (format) =>
          this.notEnforced.add(`${path}/format (${format.slice(0, 40)})`),
        )
      case 'array':
        return this.#array(schema, path, place)
      case 'object':
        return hasKeywordOf(schema, 'object')
          ? objectExpr(book, schema, path, place, (sub, subPath, subPlace) => this.compile(sub, subPath, subPlace))
          : anyObject(book)
    }
  }

  #array(schema: SchemaObject, path: string, place: LengthNode | undefined): Expr {
    const book = this.#book
    if (!hasKeywordOf(schema, 'array')) {
      return anyArray(book)
    }
    const min = countKeyword(schema, 'minItems', path) ?? 0
    const max = countKeyword(schema, 'maxItems', path)
    if (max !== undefined && max < min) {
      return NOTHING
    }
    // Draft 7 wrote a tuple as a list under `items`, and the rest as `additionalItems`.
    const tuple = Array.isArray(schema.items) ? schema.items : schema.prefixItems
    const rest = Array.isArray(schema.items) ? (schema.additionalItems ?? true) : (schema.items ?? true)
    if (tuple === undefined) {
      return max === 0 ? text('[]') : arrayOf(book, this.compile(rest, `${path}/items`, itemsNode(place)), min, max)
    }
    if (!Array.isArray(tuple)) {
      throw grammarInvalid(`${path}: 'prefixItems' must be a list`)
    }
    const first = tuple
      .slice(0, max)
      .map((item, i) => this.compile(item, `${path}/prefixItems/${i}`, prefixNode(place, i)))
    const [head, ...others] = first
    if (head === undefined) {
      return min === 0 ? text('[]') : NOTHING
    }
    // Items beyond the tuple are written only where the schema asks for them.
    const wantsRest = min > first.length || (schema.items !== undefined && !Array.isArray(schema.items))
    const restMax = max === undefined ? undefined : max - first.length
    const restExpr = wantsRest && rest !== false ? this.compile(rest, `${path}/items`, itemsNode(place)) : NOTHING
    const more = repeat(sequence(COMMA, restExpr), Math.max(0, min - first.length), restMax)
    const listed = sequence(head, ...others.map((item) => sequence(COMMA, item)), isNothing(more) ? NOTHING : more)
    return bracketed('[', ']', listed, false)
  }

  #cannotEnforce(where: string, what: string): void {
    if (this.#strict) {
      throw grammarInvalid(`${where}: ${what} cannot be enforced`)
    }
    this.notEnforced.add(where)
  }
}

function itemsNode(place: LengthNode | undefined): LengthNode | undefined {
  if (place !== undefined) {
    place.items ??= {}
  }
  return place?.items
}

function prefixNode(place: LengthNode | undefined, index: number): LengthNode | undefined {
  if (place === undefined) {
    return undefined
  }
  const node: LengthNode = {}
  place.prefix ??= []
  place.prefix[index] = node
  return node
}

/** Says nothing about strings, objects or arrays, which alone have lengths or lead to them. */
function isScalar(schema: unknown): boolean {
  const scalars: readonly unknown[] = ['null', 'boolean', 'integer', 'number']
  return isObject(schema) && scalars.includes(schema.type)
}

function typesOf(schema: SchemaObject, path: string): JsonType[] | undefined {
  const given = schema.type
  if (given === undefined) {
    const implied = new Set(Object.keys(schema).map((keyword) => TYPE_OF_KEYWORD.get(keyword)))
    implied.delete(undefined)
    return implied.size === 0 ? undefined : ([...implied] as JsonType[])
  }
  const listed: readonly unknown[] = Array.isArray(given) ? given : [given]
  const unknown = listed.find((type) => !JSON_TYPES.some((known) => known === type))
  if (unknown !== undefined) {
    throw grammarInvalid(`${path}: type '${String(unknown).slice(0, 40)}' is unknown; known: ${JSON_TYPES.join(', ')}`)
  }
  // `integer` beside `number` adds nothing; OpenAPI 3.0 wrote `nullable`.
  const types = JSON_TYPES.filter((type) => listed.includes(type) && !(type === 'integer' && listed.includes('number')))
  return schema.nullable === true && !types.includes('null') ? [...types, 'null'] : types
}

function hasKeywordOf(schema: SchemaObject, type: JsonType): boolean {
  return Object.keys(schema).some((keyword) => TYPE_OF_KEYWORD.get(keyword) === type)
}

function isOfType(value: unknown, type: JsonType): boolean {
  switch (type) {
    case 'null':
      return value === null
    case 'array':
      return Array.isArray(value)
    case 'object':
      return isObject(value)
    case 'integer':
      return Number.isInteger(value)
    case 'boolean':
    case 'number':
    case 'string':
      return typeof value === type
  }
}

/** RFC 6901 escapes, in a URI fragment. */
function decodeStep(step: string): string {
  const plain = step.replaceAll('~1', '/').replaceAll('~0', '~')
  try {
    return decodeURIComponent(plain)
  } catch {
    return plain
  }
}

/** Distinct pointers have distinct names; EBNF names are letters, digits and `_`. */
function ruleName(pointer: string): string {
  return [...pointer]
    .map((char) => (/[A-Za-z0-9]/.test(char) ? char : `_${(char.codePointAt(0) ?? 0).toString(16)}_`))
    .join('')
}
