/** What citty leaves open about arguments: a flag that no command knows is refused, lists and numbers are read strictly. */

import type { ArgsDef } from 'citty'

/** Throws for a flag that is not among `defs`: a misspelt limit must not count as no limit. */
export function checkArgs(args: object, defs: ArgsDef): void {
  const positionals = Object.values(defs).filter((def) => def.type === 'positional').length
  const known = new Set(Object.keys(defs).flatMap((name) => [name, camelCase(name), kebabCase(name)]))
  const { _: words = [], ...flags } = args as { _?: string[] }
  // First: citty takes the value of a flag that it does not know for one argument more.
  const unknown = Object.keys(flags).find((name) => !known.has(name))
  if (unknown !== undefined) {
    throw new Error(`unknown option --${unknown}`)
  }
  if (words.length > positionals) {
    throw new Error(`one argument too many: ${words[positionals]}`)
  }
}

/** `a,b` → two names; an empty text is an empty list. */
export function toList(text: string | undefined): string[] | undefined {
  return text === undefined ? undefined : text.split(',').flatMap((part) => part.trim() || [])
}

/** A whole number, or `none` for null. */
export function toLimit(name: string, text: string | undefined): number | null | undefined {
  if (text === undefined) {
    return undefined
  }
  if (text === 'none') {
    return null
  }
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new Error(`--${name} is a whole number from 1, or none; given: ${text}`)
  }
  return value
}

/** The entries that are not undefined, so that absent flags change nothing. */
export function given<T extends object>(fields: T): Partial<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Partial<T>
}

function camelCase(name: string): string {
  return name.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase())
}

function kebabCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}
