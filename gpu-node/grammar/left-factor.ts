/**
 * Choices whose alternatives begin alike, written with the common beginning once. xgrammar (0.1.27) joins equivalent states of
 * a rule's automaton by predecessor and by successor in one pass, and then accepts what neither alternative does: with
 * `"x" [a-z] [a-z] "y" | "xay" | "xacby"` also `xbbcby`. It needs two edges with one label out of one state; there are none
 * after this.
 */

import { choice, EMPTY, type Expr, repeat, sequence, text } from './expr.ts'

export function leftFactor(expr: Expr, rules: ReadonlyMap<string, Expr>): Expr {
  switch (expr.kind) {
    case 'choice':
      return factorChoice(
        expr.items.map((item) => leftFactor(item, rules)),
        rules,
      )
    case 'sequence':
      return sequence(...repeatLast(expr.items.map((item) => leftFactor(item, rules))))
    case 'repeat':
      return { ...expr, item: leftFactor(expr.item, rules) }
    case 'text':
    case 'chars':
    case 'rule':
    case 'dispatch':
      return expr
  }
}

function factorChoice(items: readonly Expr[], rules: ReadonlyMap<string, Expr>): Expr {
  const groups = new Map<string, { first: Expr; rests: Expr[] }>()
  for (const item of opened(items, rules)) {
    const [first, rest] = split(item)
    const key = JSON.stringify(first)
    const group = groups.get(key)
    if (group === undefined) {
      groups.set(key, { first, rests: [rest] })
    } else if (first !== EMPTY) {
      group.rests.push(rest)
    }
  }
  return choice(
    ...[...groups.values()].map(({ first, rests }) => {
      const [only] = rests
      return rests.length === 1 && only !== undefined
        ? sequence(first, only)
        : sequence(first, factorChoice(rests, rules))
    }),
  )
}

/**
 * Where alternatives share a beginning, those that begin with a choice (or with a rule that xgrammar would put in place) are
 * taken apart; the others stay as they are, since taking apart repeats what follows.
 */
function opened(items: readonly Expr[], rules: ReadonlyMap<string, Expr>): Expr[] {
  const apart = items.map((item) => alternatives(item, rules))
  const keys = apart.map((branches) => new Set(branches.map((branch) => JSON.stringify(split(branch)[0]))))
  return items.flatMap((item, i) => {
    const collides = keys.some((other, j) => j !== i && [...(keys[i] ?? [])].some((key) => other.has(key)))
    return collides ? (apart[i] ?? []) : [item]
  })
}

function alternatives(item: Expr, rules: ReadonlyMap<string, Expr>): Expr[] {
  if (item.kind === 'choice') {
    return item.items.flatMap((branch) => alternatives(branch, rules))
  }
  const [head, ...tail] = item.kind === 'sequence' ? item.items : [item]
  const body = head?.kind === 'rule' ? rules.get(head.name) : undefined
  const inPlace = body !== undefined && !hasRule(body) ? body : head
  return inPlace?.kind === 'choice' || (inPlace !== undefined && inPlace !== head)
    ? alternatives(inPlace, rules).flatMap((branch) => alternatives(sequence(branch, ...tail), rules))
    : [item]
}

function hasRule(expr: Expr): boolean {
  switch (expr.kind) {
    case 'rule':
    case 'dispatch':
      return true
    case 'sequence':
    case 'choice':
      return expr.items.some(hasRule)
    case 'repeat':
      return hasRule(expr.item)
    case 'text':
    case 'chars':
      return false
  }
}

/** `[a-z]* [a-z]` as `[a-z] [a-z]*`: where the repetition may go on or end, one edge would lead two ways. */
function repeatLast(items: readonly Expr[]): Expr[] {
  const ordered = [...items]
  for (let i = 0; i + 1 < ordered.length; i++) {
    const [here, next] = [ordered[i], ordered[i + 1]]
    if (here?.kind === 'repeat' && next !== undefined && JSON.stringify(here.item) === JSON.stringify(next)) {
      ordered[i] = next
      ordered[i + 1] = here
    }
  }
  return ordered
}

/** First character or part, and what follows. */
function split(item: Expr): [first: Expr, rest: Expr] {
  if (item.kind === 'text') {
    if (item.text === '') {
      return [EMPTY, EMPTY]
    }
    const [char = '', ...more] = item.text
    return [text(char), text(more.join(''))]
  }
  if (item.kind === 'repeat' && item.min > 0 && item.item.kind === 'chars') {
    return [item.item, repeat(item.item, item.min - 1, item.max === undefined ? undefined : item.max - 1)]
  }
  if (item.kind === 'sequence') {
    const [head = EMPTY, ...tail] = item.items
    const [first, rest] = split(head)
    return [first, sequence(rest, ...tail)]
  }
  return [item, EMPTY]
}
