/** `response_format` of both APIs. LoRAX: `{type, schema}`; OpenAI: `{type, json_schema}`; both also `regex` and `grammar`. */

import { z } from 'zod'
import { checkKnown } from './adapter-fields.ts'
import { fieldInvalid, type Path } from './body-parse.ts'
import type { JsonValue, OutputFormat } from './generate-request.ts'

const schemaSchema = z.union([z.record(z.string(), z.unknown()), z.boolean()], {
  error: 'a JSON schema is an object or a boolean',
})

export const responseFormatSchema = z.looseObject({
  type: z.enum(['text', 'json_object', 'json_schema', 'regex', 'grammar']),
  /** LoRAX's place for the schema, also taken on `/v1`. */
  schema: schemaSchema.nullish(),
  json_schema: z
    .object({
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

/** `undefined`: free text. A JSON format without a schema is any JSON object, on both APIs. */
export function toOutputFormat(given: ResponseFormat, path: Path): OutputFormat | undefined {
  checkKnown(given, ['type', 'schema', 'json_schema', 'regex', 'grammar'], path)
  switch (given.type) {
    case 'text':
      return undefined
    case 'json_object':
    case 'json_schema': {
      const schema = given.json_schema?.schema ?? given.schema
      return schema == null
        ? { kind: 'json_object' }
        : // Checked as an object or a boolean; what JSON.parse made below it is JSON.
          { kind: 'json_schema', schema: schema as JsonValue, strict: given.json_schema?.strict ?? true }
    }
    case 'regex':
      if (given.regex == null) {
        throw fieldInvalid([...path, 'regex'], '`response_format.regex` must be given for type `regex`')
      }
      return { kind: 'regex', pattern: given.regex }
    case 'grammar':
      if (given.grammar == null) {
        throw fieldInvalid([...path, 'grammar'], '`response_format.grammar` must be given for type `grammar`')
      }
      return { kind: 'grammar', ebnf: given.grammar }
  }
}
