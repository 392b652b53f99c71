import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { checkPlainId, scopeRefusal } from '../../../edge/adapters/adapter-scope.ts'
import { matchesGlob } from '../../../edge/adapters/glob.ts'
import { parseAdapterName } from '../../../shared/adapter-ref.ts'
import { scopesSchema } from '../../../shared/edge-api.ts'

describe('patterns', () => {
  test.each([
    ['*', '', true],
    ['acme/*', 'acme/one', true],
    ['acme/*', 'acme/one/two', true],
    ['acme/*', 'acme', false],
    ['acme/*', 'notacme/one', false],
    ['*-v2', 'one-v2', true],
    ['*-v2', 'one-v2-v3', false],
    ['a*b*c', 'a1b2b3c', true],
    ['one', 'one', true],
    ['one', 'One', false],
    ['o.e', 'one', false],
  ])('%s and %s: %s', (pattern, text, expected) => {
    expect(matchesGlob(pattern, text)).toBe(expected)
  })

  test('mean what a regular expression would mean', () => {
    const alphabet = fc.string({ unit: fc.constantFrom('a', 'b', '*', '/'), maxLength: 8 })
    fc.assert(
      fc.property(alphabet, alphabet, (pattern, text) => {
        const plain = text.replaceAll('*', 'a')
        const expression = new RegExp(`^${pattern.replaceAll('/', '\\/').replaceAll('*', '.*')}$`)
        expect(matchesGlob(pattern, plain)).toBe(expression.test(plain))
      }),
    )
  })

  test('are quick where a regular expression would not be', () => {
    const startedAt = performance.now()
    expect(matchesGlob(`${'a*'.repeat(500)}b`, 'a'.repeat(1024))).toBe(false)
    expect(performance.now() - startedAt).toBeLessThan(1000)
  })
})

describe('scopes', () => {
  const ref = (name: string) => {
    const parsed = parseAdapterName(name)
    if (parsed.kind !== 'ref') {
      throw new Error(`${name} is an alias`)
    }
    return parsed.ref
  }

  test.each([
    ['hub:acme/x', {}, true],
    ['hub:acme/x', { sources: ['local' as const] }, false],
    ['hub:acme/x', { adapters: ['acme/*'] }, true],
    ['hub:acme/x', { adapters: ['hub:acme/*'] }, true],
    ['local:acme/x', { adapters: ['hub:acme/*'] }, false],
    ['hub:other/x', { adapters: ['acme/*'] }, false],
    ['hub:acme/x', { adapters: [] }, false],
    ['s3://bucket/x', {}, false],
    ['s3://bucket/x', { buckets: ['bucket'] }, true],
    ['s3://bucket-2/x', { buckets: ['bucket'] }, false],
    ['s3://any/x', { buckets: ['*'] }, true],
  ])('%s with %j: %s', (name, given, allowed) => {
    expect(scopeRefusal(ref(name), scopesSchema.parse(given)) === undefined).toBe(allowed)
  })

  test('a pattern with a source in front is for that source, also where another id looks like it', () => {
    const scopes = scopesSchema.parse({ adapters: ['hub:acme/*'] })
    expect(scopeRefusal({ source: 'local', id: 'hub:acme/x' }, scopes)).toBeDefined()
    expect(scopeRefusal({ source: 'pbase', id: 'hub:acme/1' }, scopes)).toBeDefined()
    expect(scopeRefusal({ source: 'hub', id: 'acme/x' }, scopes)).toBeUndefined()
  })

  test.each(['local:team-a/../team-b', 'local:./x', 'local:a//b', 'local:a\\..\\b', 's3:bucket', 's3:b/../c'])(
    '%s is refused before any pattern is asked',
    (name) => {
      expect(() => checkPlainId(ref(name))).toThrow(expect.objectContaining({ code: 'field_invalid' }))
    },
  )

  test.each(['local:/srv/adapters/x', 'local:x', 's3://b/prefix/', 'hub:org/name', 'pbase:repo/3'])(
    '%s is plain',
    (name) => {
      expect(() => checkPlainId(ref(name))).not.toThrow()
    },
  )
})
