/** What a caller may ask of an answer's form, and its translation into rules. Pure; runs in the grammar-reading thread. */

import { RingletError } from '../../shared/errors.ts'
import { toEbnf } from './ebnf.ts'
import { type Expr, isNothing, leftRecursiveRule, prune, RuleBook } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { schemaToExpr } from './json-schema.ts'
import { anyObject } from './json-text.ts'
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
}

/** Longest spec, as JSON text. */
export const MAX_SPEC_CHARS = 256 * 1024
/** Longest grammar in EBNF; what is longer takes many seconds to compile. */
export const MAX_EBNF_CHARS = 512 * 1024

export function readGrammar(spec: GrammarSpec): ReadGrammar {
  const read = spec.kind === 'ebnf' ? { ebnf: spec.grammar, notEnforced: [] } : readRules(spec)
  if (read.ebnf.length > MAX_EBNF_CHARS) {
    throw grammarInvalid(
      `the grammar has ${read.ebnf.length} characters as EBNF; at most ${MAX_EBNF_CHARS} are allowed`,
    )
  }
  return read
}

function readRules(spec: RuleSpec): ReadGrammar {
  const book = new RuleBook()
  const notEnforced: string[] = []
  const root = rootOf(spec, book, notEnforced)
  const pruned = prune(book, root)
  if (isNothing(pruned.root)) {
    throw grammarInvalid('no text satisfies this grammar')
  }
  const endless = leftRecursiveRule(pruned.rules)
  if (endless !== undefined) {
    throw grammarInvalid(`the schema refers to itself without end (${endless})`)
  }
  return { ebnf: toEbnf(pruned.rules, pruned.root), notEnforced }
}

function rootOf(spec: RuleSpec, book: RuleBook, notEnforced: string[]): Expr {
  switch (spec.kind) {
    case 'json_object':
      return anyObject(book)
    case 'json_schema': {
      const compiled = schemaToExpr(book, spec.schema, { strict: spec.strict ?? true })
      notEnforced.push(...compiled.notEnforced)
      return compiled.expr
    }
    case 'regex':
      return regexToExpr(spec.pattern)
    case 'rules':
      for (const rule of spec.schemas) {
        book.rule(rule.name, () => readSchemaRule(book, rule, notEnforced))
      }
      for (const [name, expr] of spec.rules) {
        book.rule(name, () => expr)
      }
      return spec.root
  }
}

function readSchemaRule(book: RuleBook, { label, schema, strict }: SchemaRule, notEnforced: string[]): Expr {
  try {
    const compiled = schemaToExpr(book, schema, { strict })
    notEnforced.push(...compiled.notEnforced.map((path) => `${label}: ${path}`))
    return compiled.expr
  } catch (error) {
    throw error instanceof RingletError ? grammarInvalid(`${label}: ${error.message}`) : error
  }
}
