/** What an answer may look like when tools are offered: calls that fit the tools' schemas, and text where text is allowed. */

import type { OutputFormat, ToolDefinition, ToolUse } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import { ANY_CHAR, chars, without } from '../grammar/char-set.ts'
import { choice, EMPTY, type Expr, oneOf, optional, repeat, sequence, text } from '../grammar/expr.ts'
import type { GrammarSpec, SchemaRule } from '../grammar/grammar-spec.ts'
import { bracketed, literal, pair, separated, WHITESPACE } from '../grammar/json-text.ts'
import { regexToExpr } from '../grammar/regex.ts'
import type { ToolFormat } from './tool-format.ts'

/** Calls in one answer, with `parallel_tool_calls`. */
const MAX_CALLS = 16
const NO_PARAMETERS = { type: 'object', properties: {}, additionalProperties: false }
const AFTER_OPEN = 'after_open'
const ANSWER = 'answer'

/**
 * `spell` turns the format's `open` into what the grammar's vocabulary has for it: a special token stands there behind a
 * marker (grammar-vocabulary.ts). `answer`: `response_format`, for an answer without calls.
 */
export function toolGrammar(
  format: ToolFormat,
  use: ToolUse,
  spell: (text: string) => string,
  answer: OutputFormat | undefined,
): GrammarSpec {
  const { choice: wanted } = use
  const offered = use.tools.filter((tool) => wanted.kind !== 'named' || tool.function.name === wanted.name)
  const schemas: SchemaRule[] = offered.map((tool, i) => toSchemaRule(tool, i))
  const max = use.parallel && wanted.kind !== 'named' ? MAX_CALLS : 1
  const call = choice(...offered.map((tool, i) => callObject(format, tool, schemas[i]?.name ?? '')))
  const open = spell(format.open)
  const body = callBody(format, spell(format.close), call, max)
  // Formats whose every call has its own `open` repeat it.
  const again = format.separator === '' && max > 1
  if (wanted.kind === 'required' || wanted.kind === 'named') {
    const block = sequence(text(open), body)
    const more = again ? repeat(sequence(WHITESPACE, block), 0, max - 1) : EMPTY
    return { kind: 'rules', schemas, rules: [], root: sequence(block, more) }
  }
  if (answer !== undefined) {
    const plain = answerExpr(answer, schemas)
    const block = sequence(text(open), body)
    const calls = sequence(block, again ? repeat(sequence(WHITESPACE, block), 0, max - 1) : EMPTY)
    return { kind: 'rules', schemas, rules: [], root: choice(calls, plain) }
  }
  if (open === '') {
    return { kind: 'rules', schemas, rules: [], root: choice(sequence(body, WHITESPACE), textWithoutBrace()) }
  }
  const root: Expr = { kind: 'dispatch', tags: [{ trigger: open, body: AFTER_OPEN }], again }
  return { kind: 'rules', schemas, rules: [[AFTER_OPEN, body]], root }
}

/** A tool's schema is the caller's, so what is wrong with it is `tool_invalid`. */
export function toToolError(error: unknown): unknown {
  return error instanceof RingletError && error.code === 'grammar_invalid'
    ? new RingletError('tool_invalid', `Tool error: ${error.message}`, { param: 'tools', cause: error })
    : error
}

function toSchemaRule({ function: { name, parameters, strict } }: ToolDefinition, i: number): SchemaRule {
  return {
    name: `arguments${i}`,
    label: `function '${name}'`,
    schema: parameters === undefined || isEmptyObject(parameters) ? NO_PARAMETERS : parameters,
    strict: strict ?? false,
  }
}

function isEmptyObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length === 0
}

function callObject(format: ToolFormat, tool: ToolDefinition, rule: string): Expr {
  const members = [
    pair(text('"name"'), literal(tool.function.name)),
    pair(text(`"${format.argumentsKey}"`), { kind: 'rule', name: rule }),
  ]
  return bracketed('{', '}', separated(members), false)
}

/** What follows `open`. */
function callBody(format: ToolFormat, close: string, call: Expr, max: number): Expr {
  if (format.separator === '') {
    return sequence(WHITESPACE, call, WHITESPACE, text(close))
  }
  const more = repeat(sequence(text(format.separator), WHITESPACE, call), 0, max - 1)
  const calls = sequence(call, more)
  return format.inArray ? sequence(optional(text(' ')), text('['), calls, text(']')) : calls
}

/** Where a brace at the start means a call, other text starts with something else. */
function textWithoutBrace(): Expr {
  const space = chars(' \n\t')
  return sequence(
    repeat(oneOf(space), 0),
    optional(sequence(oneOf(without(without(ANY_CHAR, space), chars('{'))), repeat(oneOf(ANY_CHAR), 0))),
  )
}

function answerExpr(answer: OutputFormat, schemas: SchemaRule[]): Expr {
  switch (answer.kind) {
    case 'regex':
      return regexToExpr(answer.pattern)
    case 'grammar':
      throw new RingletError('tool_invalid', 'Tool error: a response format of type `grammar` does not go with tools', {
        param: 'response_format',
      })
    case 'json_object':
    case 'json_schema':
      schemas.push({
        name: ANSWER,
        label: 'response_format',
        schema: answer.kind === 'json_schema' ? answer.schema : { type: 'object' },
        strict: answer.kind === 'json_schema' && answer.strict,
      })
      return { kind: 'rule', name: ANSWER }
  }
}
