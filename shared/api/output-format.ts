/** `response_format` of both APIs. LoRAX: `{type, schema}`; OpenAI: `{type, json_schema}`; both also `regex` and `grammar`. */

import { z } from 'zod'
import { fieldInvalid, formatPath, type Path } from './body-parse.ts'
import { sortFields } from './field-rules.ts'
import type { JsonValue, OutputFormat } from './generate-request.ts'

const schemaSchema = z.union([z.record(z.string(), z.unknown()), z.boolean()], {
  error: 'a JSON schema is an object or a boolean',
})

const FORMAT_TYPES = ['text', 'json_object', 'json_schema', 'regex', 'grammar'] as const

export const responseFormatSchema = z.looseObject({
  type: z.enum(FORMAT_TYPES),
  /** LoRAX's place for the schema, also taken on `/v1`. */
  schema: schemaSchema.nullish(),
  json_schema: z
    .looseObject({
      name: z.string().max(256).nullish(),
      description: z.string().nullish(),
      schema: schemaSchema.nullish(),
      strict: z.boolean().nullish(),
    })
    .nullish(),
  regex: z.string().min(1).max(65_536).nullish(),
  /** EBNF, GBNF's dialect. */
  grammar: z.string().min(1).max(262_144).nullish(),
})
export type ResponseFormat = z.infer<typeof responseFormatSchema>

/** What each type reads; anything else beside it would be without effect. */
const FIELDS_OF: Record<(typeof FORMAT_TYPES)[number], readonly (keyof ResponseFormat & string)[]> = {
  text: [],
  json_object: ['schema', 'json_schema'],
  json_schema: ['schema', 'json_schema'],
  regex: ['regex'],
  grammar: ['grammar'],
}

export interface FormatReading {
  /** Absent: free text. */
  format?: OutputFormat
  /** Paths of fields that have no effect. */
  ignored: string[]
}

/** A JSON format without a schema is any JSON object. */
export function toOutputFormat(given: ResponseFormat | null | undefined, path: Path): FormatReading {
  if (given == null) {
    return { ignored: [] }
  }
  const ignored = [
    ...sortFields(given, path, { known: ['type', 'schema', 'json_schema', 'regex', 'grammar'] }),
    ...sortFields(given.json_schema ?? {}, [...path, 'json_schema'], {
      // The name is for OpenAI's own bookkeeping; the description would be for the model, which sees the schema alone.
      known: ['name', 'schema', 'strict'],
      ignored: ['description'],
    }),
  ]
  const { type } = given
  for (const name of ['schema', 'json_schema', 'regex', 'grammar'] as const) {
    if (given[name] != null && !FIELDS_OF[type].includes(name)) {
      const field = [...path, name]
      throw fieldInvalid(field, `\`${formatPath(field)}\` has no effect with type \`${type}\``)
    }
  }
  const format = readFormat(given, path)
  return format === undefined ? { ignored } : { format, ignored }
}

function readFormat(given: ResponseFormat, path: Path): OutputFormat | undefined {
  switch (given.type) {
    case 'text':
      return undefined
    case 'json_object':
    case 'json_schema': {
      if (given.schema != null && given.json_schema?.schema != null) {
        const message = 'a schema is given twice: in `schema` and in `json_schema.schema`'
        throw fieldInvalid([...path, 'schema'], message)
      }
      const schema = given.json_schema?.schema ?? given.schema
      return schema == null
        ? { kind: 'json_object' }
        : // Checked as an object or a boolean; what JSON.parse made below it is JSON.
          { kind: 'json_schema', schema: schema as JsonValue, strict: given.json_schema?.strict ?? true }
    }
    case 'regex':
      return { kind: 'regex', pattern: needed(given.regex, [...path, 'regex'], given.type) }
    case 'grammar':
      return { kind: 'grammar', ebnf: needed(given.grammar, [...path, 'grammar'], given.type) }
  }
}

function needed(value: string | null | undefined, path: Path, type: string): string {
  if (value == null) {
    throw fieldInvalid(path, `\`${formatPath(path)}\` must be given for type \`${type}\``)
  }
  return value
}
