/**
 * A context-free grammar as data: what schemas, regular expressions and tool formats are turned into, and what is printed as
 * EBNF for xgrammar. The constructors simplify: a part that matches nothing takes its sequence with it and leaves its choice.
 */

import type { CharSet } from './char-set.ts'

export type Expr =
  | { kind: 'text'; text: string }
  | { kind: 'chars'; set: CharSet }
  | { kind: 'sequence'; items: readonly Expr[] }
  /** Without items: matches nothing at all. */
  | { kind: 'choice'; items: readonly Expr[] }
  /** Without `max`: any number of times. */
  | { kind: 'repeat'; item: Expr; min: number; max: number | undefined }
  | { kind: 'rule'; name: string }
  /** Free text; after a `trigger` the rule `body` must follow, and then the end or (`again`) free text. Only as a whole rule. */
  | { kind: 'dispatch'; tags: readonly { trigger: string; body: string }[]; again: boolean }

export const NOTHING: Expr = { kind: 'choice', items: [] }
export const EMPTY: Expr = { kind: 'text', text: '' }

export function isNothing(expr: Expr): boolean {
  return expr.kind === 'choice' && expr.items.length === 0
}

export function text(value: string): Expr {
  return { kind: 'text', text: value }
}

export function oneOf(set: CharSet): Expr {
  return set.length === 0 ? NOTHING : { kind: 'chars', set }
}

export function sequence(...parts: readonly Expr[]): Expr {
  const items: Expr[] = []
  for (const part of parts) {
    if (isNothing(part)) {
      return NOTHING
    }
    const last = items.at(-1)
    if (part.kind === 'sequence') {
      items.push(...part.items)
    } else if (part.kind === 'text' && last?.kind === 'text') {
      items[items.length - 1] = text(last.text + part.text)
    } else if (part.kind !== 'text' || part.text !== '') {
      items.push(part)
    }
  }
  const [only] = items
  return items.length === 0 ? EMPTY : items.length === 1 && only !== undefined ? only : { kind: 'sequence', items }
}

export function choice(...parts: readonly Expr[]): Expr {
  const items = parts.flatMap((part) => (part.kind === 'choice' ? part.items : [part]))
  const [only] = items
  return items.length === 1 && only !== undefined ? only : { kind: 'choice', items }
}

export function optional(item: Expr): Expr {
  return repeat(item, 0, 1)
}

export function repeat(item: Expr, min: number, max?: number): Expr {
  if (max !== undefined && max < min) {
    return NOTHING
  }
  if (max === 0 || (isNothing(item) && min === 0)) {
    return EMPTY
  }
  if (isNothing(item)) {
    return NOTHING
  }
  return min === 1 && max === 1 ? item : { kind: 'repeat', item, min, max }
}

/** Rules by name; `root` is where matching starts. */
export class RuleBook {
  readonly rules = new Map<string, Expr>()

  /** Defines a rule once; `make` may refer to it. */
  rule(name: string, make: () => Expr): Expr {
    const rule: Expr = { kind: 'rule', name }
    if (!this.rules.has(name)) {
      this.rules.set(name, NOTHING)
      this.rules.set(name, make())
    }
    return rule
  }

  /** A rule of its own for `expr`, so that several places can share it. */
  share(stem: string, expr: Expr): Expr {
    if (expr.kind === 'rule' || (expr.kind === 'text' && expr.text.length < 8) || isNothing(expr)) {
      return expr
    }
    return this.rule(`${stem}${this.rules.size}`, () => expr)
  }
}

/**
 * Takes out what can never be completed (a required property whose value needs itself, say), so that generation cannot walk
 * into it. The root is `NOTHING` when nothing is left.
 */
export function prune(book: RuleBook, root: Expr): { rules: Map<string, Expr>; root: Expr } {
  const productive = new Set<string>()
  for (let grew = true; grew; ) {
    grew = false
    for (const [name, expr] of book.rules) {
      if (!productive.has(name) && !isNothing(keepProductive(expr, productive))) {
        productive.add(name)
        grew = true
      }
    }
  }
  const rules = new Map<string, Expr>()
  const visit = (expr: Expr): void => {
    for (const name of rulesIn(expr)) {
      const body = book.rules.get(name)
      if (!rules.has(name) && body !== undefined && productive.has(name)) {
        const kept = keepProductive(body, productive)
        rules.set(name, kept)
        visit(kept)
      }
    }
  }
  const keptRoot = keepProductive(root, productive)
  visit(keptRoot)
  return { rules, root: keptRoot }
}

function keepProductive(expr: Expr, productive: ReadonlySet<string>): Expr {
  switch (expr.kind) {
    case 'rule':
      return productive.has(expr.name) ? expr : NOTHING
    case 'sequence':
      return sequence(...expr.items.map((item) => keepProductive(item, productive)))
    case 'choice':
      return choice(...expr.items.map((item) => keepProductive(item, productive)))
    case 'repeat':
      return repeat(keepProductive(expr.item, productive), expr.min, expr.max)
    case 'dispatch': {
      const tags = expr.tags.filter((tag) => productive.has(tag.body))
      return tags.length === 0 ? NOTHING : { ...expr, tags }
    }
    case 'text':
    case 'chars':
      return expr
  }
}

function rulesIn(expr: Expr): string[] {
  switch (expr.kind) {
    case 'rule':
      return [expr.name]
    case 'sequence':
    case 'choice':
      return expr.items.flatMap(rulesIn)
    case 'repeat':
      return rulesIn(expr.item)
    case 'dispatch':
      return expr.tags.map((tag) => tag.body)
    case 'text':
    case 'chars':
      return []
  }
}

/** A rule that can reach itself without consuming a character, on which no matcher can be relied; `undefined`: none. */
export function leftRecursiveRule(rules: ReadonlyMap<string, Expr>): string | undefined {
  const nullable = new Set<string>()
  for (let grew = true; grew; ) {
    grew = false
    for (const [name, expr] of rules) {
      if (!nullable.has(name) && canBeEmpty(expr, nullable)) {
        nullable.add(name)
        grew = true
      }
    }
  }
  const done = new Set<string>()
  const open = new Set<string>()
  const visit = (name: string): boolean => {
    if (open.has(name)) {
      return true
    }
    const body = rules.get(name)
    if (done.has(name) || body === undefined) {
      return false
    }
    open.add(name)
    const found = leading(body, nullable).some(visit)
    open.delete(name)
    done.add(name)
    return found
  }
  return [...rules.keys()].find(visit)
}

function canBeEmpty(expr: Expr, nullable: ReadonlySet<string>): boolean {
  switch (expr.kind) {
    case 'text':
      return expr.text === ''
    case 'chars':
      return false
    case 'sequence':
      return expr.items.every((item) => canBeEmpty(item, nullable))
    case 'choice':
      return expr.items.some((item) => canBeEmpty(item, nullable))
    case 'repeat':
      return expr.min === 0 || canBeEmpty(expr.item, nullable)
    case 'rule':
      return nullable.has(expr.name)
    case 'dispatch':
      return true
  }
}

function leading(expr: Expr, nullable: ReadonlySet<string>): string[] {
  switch (expr.kind) {
    case 'rule':
      return [expr.name]
    case 'choice':
      return expr.items.flatMap((item) => leading(item, nullable))
    case 'repeat':
      return leading(expr.item, nullable)
    case 'sequence': {
      const names: string[] = []
      for (const item of expr.items) {
        names.push(...leading(item, nullable))
        if (!canBeEmpty(item, nullable)) {
          break
        }
      }
      return names
    }
    case 'text':
    case 'chars':
    case 'dispatch':
      return []
  }
}
