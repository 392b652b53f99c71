/** From an unknown body to a typed one by a zod schema, or a RingletError that names the field by its path. */

import type { z } from 'zod'
import { RingletError } from '../errors.ts'
import { nearestName } from './nearest-name.ts'
import { isTokenIds } from './token-ids.ts'

/** Deeper nesting than any sensible schema or message; keeps recursive readers (JSON text, templates) off the stack's end. */
const MAX_DEPTH = 64
/**
 * More values than any sensible conversation with its tools. The schemas report every value that is wrong, at some
 * microseconds and hundreds of bytes each: a body of 4 MB may have millions, more than an isolate's memory.
 */
const MAX_VALUES = 65_536
/** Fields that may be one long list of token ids, or several: those count as one value each. */
const TOKEN_FIELDS = ['prompt', 'input']

export type Path = readonly (string | number)[]

/** `messages[0].content`; field names from outside are cut to what a message can show. */
export function formatPath(path: Path): string {
  let text = ''
  for (const part of path) {
    text += typeof part === 'number' ? `[${part}]` : `${text === '' ? '' : '.'}${showName(part)}`
  }
  return text
}

export function showName(name: string): string {
  return name.slice(0, 64).replace(/[^\x20-\x7e]/g, '?')
}

export function fieldInvalid(path: Path, message: string): RingletError {
  return new RingletError('field_invalid', message, { param: formatPath(path) })
}

/** `known` holds the names that may be meant, which stand below `prefix`; the nearest is told. */
export function fieldUnknown(path: Path, known: readonly string[], prefix = '', otherwise?: string): RingletError {
  const param = formatPath(path)
  const name = String(path[path.length - 1] ?? '')
  const near = nearestName(name, known) ?? otherwise
  const hint = near === undefined ? '' : `; did you mean \`${prefix}${near}\`?`
  return new RingletError('field_unknown', `unknown field \`${param}\`${hint}`, { param })
}

/** Checks `body` against a schema whose objects are strict where a misspelt field must not pass. */
export function parseBody<Schema extends z.ZodType>(schema: Schema, body: unknown): z.output<Schema> {
  checkObject(body)
  const result = schema.safeParse(body)
  if (result.success) {
    return result.data
  }
  const issue = result.error.issues[0]
  throw issue === undefined ? new RingletError('field_invalid', 'the body is invalid') : toError(deepest(issue))
}

export function checkObject(body: unknown): asserts body is Record<string, unknown> {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw new RingletError('body_malformed', 'the body must be a JSON object')
  }
  // An object by now, read by any name.
  checkExtent(body as Record<string, unknown>)
}

type Issue = z.core.$ZodIssue

/** Of a union's failures the branch that got furthest says most; a union's own text, where it has one, says it better. */
function deepest(issue: Issue, base: PropertyKey[] = []): { issue: Issue; path: PropertyKey[] } {
  const path = [...base, ...issue.path]
  if (issue.code !== 'invalid_union' || issue.message !== 'Invalid input') {
    return { issue, path }
  }
  let found = { issue: issue as Issue, path }
  for (const branch of issue.errors) {
    const inner = branch[0]
    if (inner !== undefined) {
      const candidate = deepest(inner, path)
      if (candidate.path.length > found.path.length) {
        found = candidate
      }
    }
  }
  return found
}

function toError({ issue, path }: { issue: Issue; path: PropertyKey[] }): RingletError {
  const shown = path.filter((part) => typeof part !== 'symbol')
  if (issue.code === 'unrecognized_keys') {
    return fieldUnknown([...shown, issue.keys[0] ?? ''], [])
  }
  const param = formatPath(shown)
  const missing = issue.code === 'invalid_type' && issue.input === undefined && /received undefined/.test(issue.message)
  return missing
    ? new RingletError('field_invalid', `missing field \`${param}\``, { param })
    : new RingletError('field_invalid', `\`${param}\`: ${issue.message}`, { param })
}

/** Without recursion: the input decides the depth. */
function checkExtent(body: Record<string, unknown>): void {
  const tokenLists = new Set<object>(TOKEN_FIELDS.flatMap((name) => tokenListsOf(body[name])))
  let level: object[] = [body]
  let count = 0
  for (let depth = 1; level.length > 0; depth++) {
    if (depth > MAX_DEPTH) {
      throw new RingletError('field_invalid', `the body is nested deeper than ${MAX_DEPTH} levels`)
    }
    const below: object[] = []
    for (const container of level) {
      const values = Object.values(container)
      count += values.length
      if (count > MAX_VALUES) {
        throw new RingletError('field_invalid', `the body has more than ${MAX_VALUES} values, token ids apart`)
      }
      for (const value of values) {
        if (typeof value === 'object' && value !== null && !tokenLists.has(value)) {
          below.push(value)
        }
      }
    }
    level = below
  }
}

function tokenListsOf(value: unknown): object[] {
  if (isTokenIds(value)) {
    return [value]
  }
  return Array.isArray(value) ? value.filter(isTokenIds) : []
}
