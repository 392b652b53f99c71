import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { GrammarSpec } from '../../../gpu-node/grammar/grammar-spec.ts'
import { RingletError } from '../../../shared/errors.ts'
import { allowedTokens, createHarness, EOS, type Harness, seededRandom } from './grammar-harness.ts'
import { validates } from './schema-check.ts'

let harness: Harness

beforeAll(async () => {
  harness = await createHarness({ compileMs: 20_000 })
})
afterAll(() => harness.close())

const SCHEMAS: Record<string, unknown> = {
  order: {
    type: 'object',
    properties: {
      intent: { enum: ['buy', 'return', 'ask'] },
      customer: { type: 'string', maxLength: 12 },
      quantity: { type: 'integer', minimum: 1, maximum: 120 },
      price: { type: 'number', minimum: 0.5, exclusiveMaximum: 99.25 },
      gift: { type: 'boolean' },
    },
    required: ['intent', 'quantity', 'price'],
    additionalProperties: false,
  },
  tree: {
    type: 'object',
    properties: { name: { type: 'string' }, children: { type: 'array', items: { $ref: '#' }, maxItems: 2 } },
    required: ['name'],
  },
  tuple: { type: 'array', prefixItems: [{ type: 'integer' }, { type: 'boolean' }, { const: { a: [1, null] } }] },
  anything: true,
  extra: {
    type: 'object',
    properties: { ab: { type: 'integer' }, ac: { type: 'null' }, 'q"\\\n': { type: 'boolean' } },
    required: ['q"\\\n'],
    additionalProperties: { type: 'boolean' },
  },
  formats: {
    type: 'object',
    properties: {
      date: { type: 'string', format: 'date' },
      when: { type: 'string', format: 'date-time' },
      mail: { type: 'string', format: 'email' },
      code: { type: 'string', pattern: '^[A-Z]{2}-"\\d{1,3}\\\\[^a-z]$' },
    },
    required: ['date', 'when', 'mail', 'code'],
  },
  merged: {
    allOf: [{ $ref: '#/$defs/named' }, { properties: { size: { type: 'integer', maximum: 9 } }, required: ['size'] }],
    $defs: { named: { type: 'object', properties: { name: { type: 'string', minLength: 2 } }, required: ['name'] } },
  },
  union: {
    oneOf: [
      { type: 'object', properties: { kind: { const: 'a' }, x: { type: 'integer' } }, required: ['kind', 'x'] },
      { type: 'object', properties: { kind: { const: 'b' }, y: { type: 'string' } }, required: ['kind', 'y'] },
    ],
  },
  lengths: {
    type: 'object',
    properties: {
      'k"1': { type: 'string', minLength: 2, maxLength: 3 },
      tags: { type: 'array', items: { $ref: '#/$defs/tag' }, minItems: 2, maxItems: 4 },
      maybe: { anyOf: [{ $ref: '#/$defs/tag' }, { type: 'null' }] },
      either: {
        anyOf: [
          { type: 'string', maxLength: 2 },
          { type: 'array', items: { type: 'string', minLength: 5, maxLength: 6 }, minItems: 1 },
        ],
      },
      pair: {
        type: 'array',
        prefixItems: [
          { type: 'string', maxLength: 1 },
          { type: 'string', minLength: 9 },
        ],
      },
      deep: { type: 'object', additionalProperties: { type: 'string', maxLength: 4 } },
    },
    required: ['k"1', 'tags', 'maybe', 'either', 'pair', 'deep'],
    additionalProperties: false,
    $defs: { tag: { type: 'string', minLength: 1, maxLength: 4 } },
  },
  numbers: {
    type: 'array',
    items: {
      anyOf: [
        { type: 'number', exclusiveMinimum: -1.05, maximum: -0.25 },
        { type: 'integer', minimum: -17, exclusiveMaximum: 203 },
        { type: 'number', multipleOf: 0.01 },
        { type: 'number', exclusiveMinimum: 0 },
      ],
    },
    minItems: 4,
    maxItems: 6,
  },
}

describe('a model that knows nothing', () => {
  test.each(Object.keys(SCHEMAS))('writes JSON valid under the schema "%s"', async (name) => {
    const schema = SCHEMAS[name]
    let ended = 0
    for (let seed = 0; seed < 25; seed++) {
      const text = await harness.sample({ kind: 'json_schema', schema }, seededRandom(seed), { maxTokens: 1500 })
      if (text !== undefined) {
        ended += 1
        expect(validates(schema, JSON.parse(text), schema), text).toEqual([])
      }
    }
    expect(ended).toBeGreaterThanOrEqual(20)
  })

  test('writes JSON objects, matches of a regular expression, and sentences of a grammar', async () => {
    for (let seed = 0; seed < 10; seed++) {
      const object = await harness.sample({ kind: 'json_object' }, seededRandom(seed))
      if (object !== undefined) {
        expect(JSON.parse(object)).toBeTypeOf('object')
      }
      const pattern = '(yes|no)(, [a-zé]{3,8}){1,2}\\.'
      const match = await harness.sample({ kind: 'regex', pattern }, seededRandom(seed))
      expect(match).toMatch(new RegExp(`^${pattern}$`))
      const grammar = 'root ::= "(" root ")" | "x"'
      const sentence = await harness.sample({ kind: 'ebnf', grammar }, seededRandom(seed))
      expect(sentence).toMatch(/^\(*x\)*$/)
      expect(sentence?.split('(').length).toBe(sentence?.split(')').length)
    }
  })
})

test('whatever the schema, what is written is valid under it, or the schema is refused', async () => {
  const count = fc.integer({ min: 0, max: 4 })
  const name = fc.constantFrom('a', 'b', 'ab', 'a"b', 'é', '__proto__', 'type')
  const leaf = fc.oneof(
    fc.constant({ type: 'null' }),
    fc.constant({ type: 'boolean' }),
    fc.record({ type: fc.constant('integer'), minimum: fc.integer({ min: -99, max: 99 }) }),
    fc.record({
      type: fc.constant('number'),
      exclusiveMaximum: fc.integer({ min: -999, max: 999 }).map((n) => n / 100),
    }),
    fc.record({ type: fc.constant('string'), minLength: count, maxLength: count }, { requiredKeys: ['type'] }),
    fc.record({
      enum: fc.array(fc.oneof(name, fc.integer(), fc.constant(null), fc.constant({ x: [1] })), { minLength: 1 }),
    }),
    fc.record({ type: fc.constant(['string', 'integer', 'null']), maxLength: count }),
    fc.record({ $ref: fc.constantFrom('#', '#/$defs/leaf') }),
  )
  const { schema } = fc.letrec<{ schema: object }>((tie) => ({
    schema: fc.oneof(
      { maxDepth: 3, depthSize: 'small' },
      leaf,
      fc.record(
        {
          type: fc.constant('object'),
          properties: fc.dictionary(name, tie('schema'), { maxKeys: 3 }),
          required: fc.uniqueArray(name, { maxLength: 2 }),
          additionalProperties: fc.oneof(fc.boolean(), leaf),
        },
        { requiredKeys: ['type'] },
      ),
      fc.record(
        { type: fc.constant('array'), items: tie('schema'), minItems: count, maxItems: count },
        { requiredKeys: ['type'] },
      ),
      fc.record({ anyOf: fc.array(tie('schema'), { minLength: 1, maxLength: 3 }) }),
      fc.record({ allOf: fc.array(tie('schema'), { minLength: 1, maxLength: 2 }) }),
    ),
  }))
  // One that refers to itself alone says nothing; the obvious validator would ask it for ever.
  const defined = leaf.filter((own) => !('$ref' in own && own.$ref === '#/$defs/leaf'))
  const root = fc.tuple(schema, defined).map(([top, own]): object => ({ ...top, $defs: { leaf: own } }))
  let written = 0
  await fc.assert(
    fc.asyncProperty(root, fc.nat(), async (given, seed) => {
      const text = await harness
        .sample({ kind: 'json_schema', schema: given }, seededRandom(seed), { maxTokens: 150, closing: 0.6 })
        .catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'grammar_invalid' })
          return undefined
        })
      if (text !== undefined) {
        written += 1
        expect(validates(given, JSON.parse(text), given), text).toEqual([])
      }
    }),
    { numRuns: 150 },
  )
  expect(written).toBeGreaterThan(50)
})

describe('a wrong grammar is its caller’s alone', () => {
  const wrong: [string, GrammarSpec, RegExp][] = [
    ['an unknown type', { kind: 'json_schema', schema: { type: 'nonsense' } }, /#: type 'nonsense' is unknown/],
    [
      'a keyword that cannot be enforced',
      { kind: 'json_schema', schema: { not: {} } },
      /#\/not: 'not' cannot be enforced/,
    ],
    ['a misspelt keyword', { kind: 'json_schema', schema: { type: 'string', maxLenght: 3 } }, /'maxLenght' cannot/],
    ['a reference to nothing', { kind: 'json_schema', schema: { $ref: '#/$defs/x' } }, /points to nothing/],
    ['a reference elsewhere', { kind: 'json_schema', schema: { $ref: 'https://example.com/s' } }, /nothing is fetched/],
    [
      'a schema without a value',
      { kind: 'json_schema', schema: { type: 'integer', minimum: 3, maximum: 1 } },
      /no text/,
    ],
    [
      'a schema without an end',
      { kind: 'json_schema', schema: { properties: { n: { $ref: '#' } }, required: ['n'] } },
      /no text/,
    ],
    ['lookahead', { kind: 'regex', pattern: 'a(?=b)' }, /lookahead is not supported/],
    ['an open group', { kind: 'regex', pattern: '(' }, /not closed/],
    ['an unknown rule', { kind: 'ebnf', grammar: 'root ::= "a" b' }, /Rule "b" is not defined/],
    ['no grammar at all', { kind: 'ebnf', grammar: 'root := x' }, /EBNF lexer error/],
  ]
  test.each(wrong)('%s', async (_, spec, message) => {
    const error = await harness.service.acquire(spec).catch((e: unknown) => e)
    expect(error).toBeInstanceOf(RingletError)
    expect(error).toMatchObject({ code: 'grammar_invalid', message: expect.stringMatching(message) })
    expect(await harness.sample({ kind: 'regex', pattern: 'ok' }, seededRandom(1))).toBe('ok')
  })

  test('without strict, what cannot be enforced is named and left to the model', async () => {
    const schema = { type: 'array', items: { type: 'integer' }, uniqueItems: true }
    const lease = await harness.service.acquire({ kind: 'json_schema', schema, strict: false })
    expect(lease.notEnforced).toEqual(['#/uniqueItems'])
    lease.release()
  })
})

test.each([
  ['root ::= root', ''],
  ['root ::= a\na ::= b\nb ::= a', ''],
  ['root ::= "a" b\nb ::= "x" b', 'axxxxx'],
])('a grammar without an end is no answer that has ended: %s', async (grammar, before) => {
  const lease = await harness.service.acquire({ kind: 'ebnf', grammar })
  const id = `endless ${grammar}`
  harness.masks.begin(id, lease.grammarId, Int32Array.from(harness.tokenizer.encode(before, false)))
  // An empty mask fails the sequence: nothing is allowed.
  const mask = await harness.nextMask(id)
  expect(mask === undefined ? 'ended' : allowedTokens(mask).includes(EOS)).toBe(false)
  harness.masks.end(id)
  lease.release()
})

test('a sequence continues after tokens that were delivered before', async () => {
  const lease = await harness.service.acquire({ kind: 'regex', pattern: 'abc[0-9]' })
  const replay = Int32Array.from(harness.tokenizer.encode('abc', false))
  harness.masks.begin('continued', lease.grammarId, replay)
  const mask = await harness.nextMask('continued')
  const digit = harness.tokenizer.encode('7', false)[0] ?? -1
  expect(((mask?.[digit >> 5] ?? 0) >>> (digit & 31)) & 1).toBe(1)
  expect(((mask?.[EOS >> 5] ?? 0) >>> (EOS & 31)) & 1).toBe(0)
  harness.masks.accept('continued', digit)
  expect(await harness.nextMask('continued')).toBeUndefined()
  harness.masks.end('continued')
  lease.release()
})
