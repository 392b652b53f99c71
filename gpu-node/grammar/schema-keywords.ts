/** Which JSON Schema keywords (2020-12, and draft 7's spellings) the grammar enforces, which say nothing about validity, and which it cannot enforce. */

export type SchemaObject = Readonly<Record<string, unknown>>
export type JsonType = 'object' | 'array' | 'string' | 'number' | 'integer' | 'boolean' | 'null'

export const JSON_TYPES: readonly JsonType[] = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']

/** Keywords that imply a type when `type` is absent. */
export const TYPE_OF_KEYWORD: ReadonlyMap<string, JsonType> = new Map<string, JsonType>([
  ['properties', 'object'],
  ['required', 'object'],
  ['additionalProperties', 'object'],
  ['patternProperties', 'object'],
  ['propertyNames', 'object'],
  ['minProperties', 'object'],
  ['maxProperties', 'object'],
  ['items', 'array'],
  ['prefixItems', 'array'],
  ['minItems', 'array'],
  ['maxItems', 'array'],
  ['minLength', 'string'],
  ['maxLength', 'string'],
  ['pattern', 'string'],
  ['format', 'string'],
  ['minimum', 'number'],
  ['maximum', 'number'],
  ['exclusiveMinimum', 'number'],
  ['exclusiveMaximum', 'number'],
  ['multipleOf', 'number'],
])

const COMBINATORS = ['$ref', 'allOf', 'anyOf', 'oneOf', 'type', 'enum', 'const', 'nullable']

const ENFORCED = new Set([...TYPE_OF_KEYWORD.keys(), ...COMBINATORS])

const ANNOTATIONS = new Set([
  ...['$schema', '$id', '$comment', '$defs', 'definitions', '$anchor', 'title', 'description', 'default', 'example'],
  ...['examples', 'deprecated', 'readOnly', 'writeOnly', 'contentEncoding', 'contentMediaType', 'contentSchema'],
  // OpenAPI's: a hint about which branch of a union holds, which the branches themselves say too.
  ...['discriminator', 'externalDocs', 'xml', 'propertyOrdering'],
])

/** Values with which a keyword that is not enforced demands nothing. */
const HARMLESS: ReadonlyMap<string, readonly unknown[]> = new Map([
  ['uniqueItems', [false]],
  ['unevaluatedProperties', [true, false]],
  ['unevaluatedItems', [true, false]],
  ['additionalItems', [true, false]],
  ['minContains', [0]],
])

/** Does the keyword change which values are valid, here, in a way that the grammar enforces? */
export function constrains(keyword: string): boolean {
  return !ANNOTATIONS.has(keyword) && !keyword.startsWith('x-')
}

/** Keywords of a schema that demand something the grammar does not enforce. */
export function unenforced(schema: SchemaObject): string[] {
  return Object.keys(schema).filter(
    (keyword) => constrains(keyword) && !ENFORCED.has(keyword) && !HARMLESS.get(keyword)?.includes(schema[keyword]),
  )
}
