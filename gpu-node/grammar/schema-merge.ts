/** The intersection of two schemas without `$ref`, `allOf`, `anyOf`, `oneOf`: what satisfies both. */

import { grammarInvalid } from './grammar-error.ts'
import type { SchemaObject } from './schema-keywords.ts'

/** A schema no value satisfies. */
export const IMPOSSIBLE: SchemaObject = { enum: [] }

type Mutable = Record<string, unknown>

export function mergeSchemas(a: SchemaObject, b: SchemaObject, path: string): SchemaObject {
  const merged: Mutable = { ...a }
  for (const [keyword, value] of Object.entries(b)) {
    const other = a[keyword]
    merged[keyword] = other === undefined || sameJson(other, value) ? value : mergeKeyword(keyword, other, value, path)
  }
  mergeProperties(a, b, merged)
  return merged
}

function mergeKeyword(keyword: string, a: unknown, b: unknown, path: string): unknown {
  switch (keyword) {
    case 'type':
      return intersectTypes(toList(a), toList(b))
    case 'enum':
      return toList(a).filter((value) => toList(b).some((other) => sameJson(value, other)))
    case 'const':
      throw grammarInvalid(`${path}: two different 'const' values must both hold`)
    case 'minimum':
    case 'exclusiveMinimum':
    case 'minLength':
    case 'minItems':
    case 'minProperties':
      return Math.max(Number(a), Number(b))
    case 'maximum':
    case 'exclusiveMaximum':
    case 'maxLength':
    case 'maxItems':
    case 'maxProperties':
      return Math.min(Number(a), Number(b))
    case 'required':
      return [...new Set([...toList(a), ...toList(b)])]
    case 'items':
    case 'additionalProperties':
    case 'propertyNames':
      return { allOf: [a, b] }
    case 'properties':
      return b // mergeProperties replaces it: what becomes of a property depends on additionalProperties.
    case 'nullable':
      return false
    case 'title':
    case 'description':
    case 'default':
    case 'examples':
      return a
    default:
      throw grammarInvalid(`${path}: '${keyword}' stands in two schemas that must both hold; merge them into one`)
  }
}

/** A property that one side does not name is under that side's `additionalProperties`. */
function mergeProperties(a: SchemaObject, b: SchemaObject, merged: Mutable): void {
  if (a.properties === undefined && b.properties === undefined) {
    return
  }
  const [inA, inB] = [toObject(a.properties), toObject(b.properties)]
  const names = new Set([...Object.keys(inA), ...Object.keys(inB)])
  // fromEntries defines properties; assignment would set the prototype for a property called `__proto__`.
  merged.properties = Object.fromEntries(
    [...names].map((name) => {
      const parts = [sideOf(name, inA, a), sideOf(name, inB, b)].filter((part) => part !== undefined && part !== true)
      return [name, parts.length === 0 ? true : parts.length === 1 ? parts[0] : { allOf: parts }]
    }),
  )
}

function sideOf(name: string, properties: SchemaObject, side: SchemaObject): unknown {
  return Object.hasOwn(properties, name) ? properties[name] : side.additionalProperties
}

/** `integer` is a subset of `number`. */
function intersectTypes(a: readonly unknown[], b: readonly unknown[]): unknown[] {
  const narrow = (types: readonly unknown[], others: readonly unknown[]): unknown[] =>
    types.filter((type) => others.includes(type) || (type === 'integer' && others.includes('number')))
  return [...new Set([...narrow(a, b), ...narrow(b, a)])]
}

export function sameJson(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, i) => sameJson(item, b[i]))
  }
  if (isObject(a) && isObject(b)) {
    const keys = Object.keys(a)
    return (
      keys.length === Object.keys(b).length && keys.every((key) => Object.hasOwn(b, key) && sameJson(a[key], b[key]))
    )
  }
  return a === b
}

export function isObject(value: unknown): value is SchemaObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function toList(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [value]
}

function toObject(value: unknown): SchemaObject {
  return isObject(value) ? value : {}
}
