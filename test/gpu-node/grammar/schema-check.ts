/** The obvious validator, for the keywords that the tests use: what is wrong with `value`, by path. */

type Schema = Record<string, unknown>

export function validates(schema: unknown, value: unknown, root: unknown, path = '$'): string[] {
  if (schema === true) {
    return []
  }
  if (schema === false || typeof schema !== 'object' || schema === null) {
    return [`${path} is forbidden`]
  }
  const s = schema as Schema
  const wrong: string[] = []
  const check = (ok: boolean, what: string): void => {
    if (!ok) {
      wrong.push(`${path} ${what}: ${JSON.stringify(value)}`)
    }
  }
  const sub = (part: unknown, inner: unknown, at: string): string[] => validates(part, inner, root, `${path}${at}`)
  if (typeof s.$ref === 'string') {
    let target: unknown = root
    for (const step of s.$ref.split('/').slice(1)) {
      target = (target as Schema)[step]
    }
    wrong.push(...sub(target, value, ''))
  }
  for (const part of (s.allOf as unknown[] | undefined) ?? []) {
    wrong.push(...sub(part, value, ''))
  }
  if (s.anyOf !== undefined) {
    check(
      (s.anyOf as unknown[]).some((part) => sub(part, value, '').length === 0),
      'matches no branch',
    )
  }
  if (s.oneOf !== undefined) {
    check(
      (s.oneOf as unknown[]).filter((part) => sub(part, value, '').length === 0).length === 1,
      'matches not one branch',
    )
  }
  if (s.type !== undefined) {
    check(
      [s.type].flat().some((type) => isType(value, String(type))),
      `is no ${String(s.type)}`,
    )
  }
  if (s.enum !== undefined) {
    check(
      (s.enum as unknown[]).some((one) => JSON.stringify(one) === JSON.stringify(value)),
      'is not listed',
    )
  }
  if ('const' in s) {
    check(JSON.stringify(s.const) === JSON.stringify(value), 'is not the constant')
  }
  if (typeof value === 'number') {
    check(value >= Number(s.minimum ?? -Infinity), 'is below minimum')
    check(value <= Number(s.maximum ?? Infinity), 'is above maximum')
    check(value > Number(s.exclusiveMinimum ?? -Infinity), 'is not above exclusiveMinimum')
    check(value < Number(s.exclusiveMaximum ?? Infinity), 'is not below exclusiveMaximum')
    const quotient = value / Number(s.multipleOf ?? value)
    check(value === 0 || Math.abs(quotient - Math.round(quotient)) < 1e-6 * Math.abs(quotient), 'is no multiple')
  }
  if (typeof value === 'string') {
    const length = [...value].length
    // A model that knows nothing writes bytes that are no UTF-8; each of them is then a character of its own.
    const garbled = value.includes('\ufffd')
    const fits = length >= Number(s.minLength ?? 0) && length <= Number(s.maxLength ?? Infinity)
    check(garbled || fits, 'has a wrong length')
    check(s.pattern === undefined || garbled || new RegExp(String(s.pattern), 'u').test(value), 'does not match')
    check(s.format === undefined || hasFormat(String(s.format), value), `is no ${String(s.format)}`)
  }
  if (Array.isArray(value)) {
    check(value.length >= Number(s.minItems ?? 0) && value.length <= Number(s.maxItems ?? Infinity), 'has a wrong size')
    const prefix = (s.prefixItems as unknown[] | undefined) ?? []
    for (const [i, item] of value.entries()) {
      wrong.push(...sub(prefix[i] ?? s.items ?? true, item, `[${i}]`))
    }
  } else if (typeof value === 'object' && value !== null) {
    const properties = (s.properties ?? {}) as Schema
    for (const name of (s.required as string[] | undefined) ?? []) {
      check(Object.hasOwn(value, name), `lacks ${name}`)
    }
    for (const [name, member] of Object.entries(value)) {
      const part = Object.hasOwn(properties, name) ? properties[name] : (s.additionalProperties ?? true)
      wrong.push(...sub(part, member, `.${name}`))
    }
  }
  return wrong
}

function isType(value: unknown, type: string): boolean {
  switch (type) {
    case 'null':
      return value === null
    case 'array':
      return Array.isArray(value)
    case 'object':
      return typeof value === 'object' && value !== null && !Array.isArray(value)
    case 'integer':
      return Number.isInteger(value)
    default:
      return typeof value === type
  }
}

function hasFormat(format: string, value: string): boolean {
  switch (format) {
    case 'date':
      return new Date(value).toISOString().startsWith(value)
    case 'date-time':
      return /T.*(Z|[+-]\d\d:\d\d)$/.test(value) && !Number.isNaN(Date.parse(value))
    case 'email':
      return /^[^@\s]+@[^@\s]+\.[^@\s]+$/.test(value)
    default:
      throw new Error(`the check does not know format ${format}`)
  }
}
