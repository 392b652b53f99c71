/** What a caller may ask of an answer's form, and its translation into rules. Pure; runs in the grammar-reading thread. */

import { RingletError } from '../../shared/errors.ts'
import { toEbnf } from './ebnf.ts'
import { type Expr, isNothing, leftRecursiveRule, prune, RuleBook } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { type CompiledSchema, schemaToExpr } from './json-schema.ts'
import { anyObject } from './json-text.ts'
import type { LengthNode } from './length-bounds.ts'
import { regexToExpr } from './regex.ts'

export type GrammarSpec =
  | RuleSpec
  /** xgrammar's EBNF; the rule `root` is the answer. */
  | { kind: 'ebnf'; grammar: string }

/** Kinds that become rules here. */
type RuleSpec =
  /** `strict` (default true): see `SchemaOptions`. */
  | { kind: 'json_schema'; schema: unknown; strict?: boolean }
  /** Any JSON object. */
  | { kind: 'json_object' }
  /** The whole answer matches. */
  | { kind: 'regex'; pattern: string }
  /** Rules that another part of the node made (tool calls), which may name those of `schemas`. */
  | { kind: 'rules'; rules: readonly (readonly [string, Expr])[]; root: Expr; schemas: readonly SchemaRule[] }

export interface SchemaRule {
  name: string
  /** What its errors name. */
  label: string
  schema: unknown
  strict: boolean
}

export interface ReadGrammar {
  ebnf: string
  /** Schema keywords, by path, that are left to the model; only where the caller allowed it. */
  notEnforced: string[]
  lengths: LengthNode | undefined
}

/** Longest spec, as JSON text. */
export const MAX_SPEC_CHARS = 256 * 1024
/** Longest grammar in EBNF; what is longer takes many seconds to compile. */
export const MAX_EBNF_CHARS = 512 * 1024

export function readGrammar(spec: GrammarSpec): ReadGrammar {
  const read = spec.kind === 'ebnf' ? { ebnf: spec.grammar, notEnforced: [], lengths: undefined } : readRules(spec)
  if (read.ebnf.length > MAX_EBNF_CHARS) {
    throw grammarInvalid(
      `the grammar has ${read.ebnf.length} characters as EBNF; at most ${MAX_EBNF_CHARS} are allowed`,
    )
  }
  return read
}

function readRules(spec: RuleSpec): ReadGrammar {
  const book = new RuleBook()
  const { expr, lengths, notEnforced } = rootOf(spec, book)
  const pruned = prune(book, expr)
  if (isNothing(pruned.root)) {
    throw grammarInvalid('no text satisfies this grammar')
  }
  const endless = leftRecursiveRule(pruned.rules)
  if (endless !== undefined) {
    throw grammarInvalid(`the schema refers to itself without end (${endless})`)
  }
  return { ebnf: toEbnf(pruned.rules, pruned.root), notEnforced, lengths }
}

function rootOf(spec: RuleSpec, book: RuleBook): CompiledSchema {
  switch (spec.kind) {
    case 'json_object':
      return { expr: anyObject(book), lengths: undefined, notEnforced: [] }
    case 'json_schema':
      return schemaToExpr(book, spec.schema, { strict: spec.strict ?? true, keepLengths: true })
    case 'regex':
      return { expr: regexToExpr(spec.pattern), lengths: undefined, notEnforced: [] }
    case 'rules': {
      const notEnforced: string[] = []
      for (const rule of spec.schemas) {
        book.rule(rule.name, () => readSchemaRule(book, rule, notEnforced))
      }
      for (const [name, expr] of spec.rules) {
        book.rule(name, () => expr)
      }
      return { expr: spec.root, lengths: undefined, notEnforced }
    }
  }
}

function readSchemaRule(book: RuleBook, { label, schema, strict }: SchemaRule, notEnforced: string[]): Expr {
  try {
    const compiled = schemaToExpr(book, schema, { strict, keepLengths: false })
    notEnforced.push(...compiled.notEnforced.map((path) => `${label}: ${path}`))
    return compiled.expr
  } catch (error) {
    throw error instanceof RingletError ? grammarInvalid(`${label}: ${error.message}`) : error
  }
}
