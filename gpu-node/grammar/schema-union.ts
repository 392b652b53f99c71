/** Can two branches of a `oneOf` hold for one value? Answers "no" only where it is plain to see. */

import type { SchemaObject } from './schema-keywords.ts'
import { isObject, sameJson } from './schema-merge.ts'

export function disjoint(branches: readonly unknown[], resolve: (pointer: string) => unknown): boolean {
  const plain = branches.map((branch) => follow(branch, resolve, 0))
  return plain.every((a, i) =>
    plain.slice(i + 1).every((b) => a !== undefined && b !== undefined && apart(a, b, resolve)),
  )
}

function follow(schema: unknown, resolve: (pointer: string) => unknown, depth: number): SchemaObject | undefined {
  if (!isObject(schema) || depth > 8) {
    return undefined
  }
  return typeof schema.$ref === 'string' ? follow(resolve(schema.$ref), resolve, depth + 1) : schema
}

function apart(a: SchemaObject, b: SchemaObject, resolve: (pointer: string) => unknown): boolean {
  const [valuesA, valuesB] = [values(a), values(b)]
  if (valuesA !== undefined && valuesB !== undefined) {
    return !valuesA.some((value) => valuesB.some((other) => sameJson(value, other)))
  }
  const [typesA, typesB] = [types(a), types(b)]
  if (typesA !== undefined && typesB !== undefined && !typesA.some((type) => typesB.includes(type))) {
    return true
  }
  return discriminated(a, b, resolve)
}

/** A property that both require, with no value in common. */
function discriminated(a: SchemaObject, b: SchemaObject, resolve: (pointer: string) => unknown): boolean {
  const [requiredA, requiredB] = [a.required, b.required]
  if (!Array.isArray(requiredA) || !Array.isArray(requiredB) || !isObject(a.properties) || !isObject(b.properties)) {
    return false
  }
  const [propertiesA, propertiesB] = [a.properties, b.properties]
  return requiredA.some((name) => {
    const left = follow(propertiesA[name], resolve, 0)
    const right = follow(propertiesB[name], resolve, 0)
    return requiredB.includes(name) && left !== undefined && right !== undefined && apart(left, right, resolve)
  })
}

function values(schema: SchemaObject): readonly unknown[] | undefined {
  return 'const' in schema ? [schema.const] : Array.isArray(schema.enum) ? schema.enum : undefined
}

function types(schema: SchemaObject): readonly unknown[] | undefined {
  if (schema.type === undefined) {
    return undefined
  }
  const listed: readonly unknown[] = Array.isArray(schema.type) ? schema.type : [schema.type]
  return listed.map((type) => (type === 'integer' ? 'number' : type))
}
