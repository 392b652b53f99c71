/** Grammars compared with what they should match, on every text that is tried: as JavaScript regular expressions. */

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type CharSet, charSet, complement } from '../../../gpu-node/grammar/char-set.ts'
import { toEbnf } from '../../../gpu-node/grammar/ebnf.ts'
import type { Expr } from '../../../gpu-node/grammar/expr.ts'
import { integerBetween, numberBetween } from '../../../gpu-node/grammar/number-range.ts'
import { regexToExpr } from '../../../gpu-node/grammar/regex.ts'
import { numberExpr } from '../../../gpu-node/grammar/schema-numbers.ts'
import { utf8Ranges } from '../../../gpu-node/grammar/utf8-ranges.ts'
import { loadXgrammar } from '../../../gpu-node/grammar/xgrammar.ts'

function toRegExp(expr: Expr): RegExp {
  return new RegExp(`^(?:${source(expr)})$`, 'u')
}

function source(expr: Expr): string {
  switch (expr.kind) {
    case 'text':
      return `(?:${[...expr.text].map((char) => escapePoint(char.codePointAt(0) ?? 0)).join('')})`
    case 'chars':
      return `[${expr.set.map(([low, high]) => `${escapePoint(low)}-${escapePoint(high)}`).join('')}]`
    case 'sequence':
      return expr.items.map(source).join('')
    case 'choice':
      return expr.items.length === 0 ? '(?!)' : `(?:${expr.items.map(source).join('|')})`
    case 'repeat':
      return `(?:${source(expr.item)}){${expr.min},${expr.max ?? ''}}`
    case 'rule':
    case 'dispatch':
      throw new Error('these grammars have no rules')
  }
}

function escapePoint(point: number): string {
  return `\\u{${point.toString(16)}}`
}

describe('numbers between bounds', () => {
  const small = fc.integer({ min: -1200, max: 1200 })
  test('integers: exactly those in range', () => {
    fc.assert(
      fc.property(
        small,
        small,
        fc.boolean(),
        fc.boolean(),
        fc.array(small, { minLength: 20 }),
        (a, b, open, shut, tries) => {
          const [low, high] = [Math.min(a, b), Math.max(a, b)]
          const pattern = toRegExp(integerBetween({ value: low, exclusive: open }, { value: high, exclusive: shut }))
          for (const n of [...tries, low, high, low - 1, high + 1, low + 1, high - 1, 0]) {
            const inside = (open ? n > low : n >= low) && (shut ? n < high : n <= high)
            expect([n, pattern.test(String(n))]).toEqual([n, inside])
          }
          expect(pattern.test('-0')).toBe(false)
          expect(pattern.test('007')).toBe(false)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('integers with one bound', () => {
    fc.assert(
      fc.property(small, fc.maxSafeInteger(), (bound, n) => {
        expect(toRegExp(integerBetween({ value: bound, exclusive: false }, undefined)).test(String(n))).toBe(n >= bound)
        expect(toRegExp(integerBetween(undefined, { value: bound, exclusive: false })).test(String(n))).toBe(n <= bound)
      }),
    )
  })

  const decimal = fc
    .tuple(fc.integer({ min: -99_999, max: 99_999 }), fc.integer({ min: 0, max: 3 }))
    .map(([n, p]) => n / 10 ** p)
  test('decimals: exactly those in range', () => {
    fc.assert(
      fc.property(
        decimal,
        decimal,
        fc.boolean(),
        fc.boolean(),
        fc.array(decimal, { minLength: 20 }),
        (a, b, open, shut, tries) => {
          const [low, high] = [Math.min(a, b), Math.max(a, b)]
          const pattern = toRegExp(numberBetween({ value: low, exclusive: open }, { value: high, exclusive: shut }))
          const near = [low, high].flatMap((n) => [n, n + 0.001, n - 0.001, Math.ceil(n), Math.floor(n)])
          for (const n of [...tries, ...near.map((one) => Number(one.toFixed(4)))]) {
            const inside = (open ? n > low : n >= low) && (shut ? n < high : n <= high)
            expect([low, high, n, pattern.test(String(n))]).toEqual([low, high, n, inside])
            expect(pattern.test(Number.isInteger(n) ? `${n}.0` : `${n}00`)).toBe(inside)
          }
        },
      ),
      { numRuns: 300 },
    )
  })
})

test.each([10, 1000])('multiples of %i: whole numbers that end in zeros, and 0, as JSON writes them', (multiple) => {
  const pattern = toRegExp(numberExpr({ multipleOf: multiple }, 'integer', '#')!)
  fc.assert(
    fc.property(fc.integer({ min: -100_000, max: 100_000 }), (n) => {
      expect([n, pattern.test(String(n))]).toEqual([n, n % multiple === 0])
      expect([n, pattern.test(String(n * multiple))]).toEqual([n, true])
    }),
  )
  for (const bad of ['000', '00', '-0', '-000', '01000', '-', '']) {
    expect([bad, pattern.test(bad)]).toEqual([bad, false])
  }
  // No double holds every multiple above this.
  expect(pattern.test(`1${'0'.repeat(14)}`)).toBe(true)
  expect(pattern.test(`1${'0'.repeat(15)}`)).toBe(false)
})

test('regular expressions match what JavaScript’s match', () => {
  const patterns = [
    '^abc$',
    'a|b|',
    '(?:ab|c)*d',
    '[a-c\\d_-]{2,3}',
    '[^a-c]',
    '\\w+\\s?\\W',
    'a{2}b{1,}c{0,2}',
    '.',
    '\\.\\*\\/',
    '(a(b(c)?)?)?',
    '[\\]\\\\^]',
    '\\x41\\u0042',
    'x*?y+?',
    '[é-ü]',
    '(?<name>a)+',
    '^a$|^b$',
    '',
  ]
  const letters = fc.string({ unit: fc.constantFrom(...'abcdxyABé ü_-.*/^]\\0159\n'), maxLength: 6 })
  for (const pattern of patterns) {
    const ours = toRegExp(regexToExpr(pattern))
    const theirs = new RegExp(`^(?:${pattern})$`)
    fc.assert(
      fc.property(letters, (text) => {
        expect([pattern, text, ours.test(text)]).toEqual([pattern, text, theirs.test(text)])
      }),
    )
  }
})

describe('xgrammar, given our grammars', () => {
  const LETTERS = ['a', 'b', 'c']
  const END = LETTERS.length
  const LONGEST = 5

  /** Texts of up to LONGEST letters on which the grammar of `pattern` and JavaScript disagree. */
  async function disagreements(pattern: string): Promise<string[]> {
    const { xgrammar } = await loaded
    const compiled = await (await compiler).compileGrammar(toEbnf(new Map(), regexToExpr(pattern)))
    const matcher = await xgrammar.GrammarMatcher.createGrammarMatcher(compiled)
    const expected = new RegExp(`^(?:${pattern})$`)
    const wrong: string[] = []
    const walk = async (text: string, reached: boolean): Promise<void> => {
      const mask = reached ? ((await matcher.getNextTokenBitmask())[0] ?? 0) : 0
      if ((((mask >> END) & 1) === 1) !== expected.test(text)) {
        wrong.push(text)
      }
      for (const [token, letter] of text.length < LONGEST ? LETTERS.entries() : []) {
        const goesOn = ((mask >> token) & 1) === 1 && matcher.acceptToken(token)
        await walk(text + letter, goesOn)
        if (goesOn) {
          matcher.rollBack(1)
        }
      }
    }
    await walk('', true)
    matcher.dispose()
    compiled.dispose()
    return wrong
  }

  const loaded = Promise.resolve(loadXgrammar(2 ** 28))
  const compiler = loaded.then(async ({ xgrammar }) => {
    const vocabulary = [...LETTERS, '']
    const info = await xgrammar.TokenizerInfo.createTokenizerInfo(vocabulary, 'raw', false, vocabulary.length, [END])
    return xgrammar.GrammarCompiler.createGrammarCompiler(info, false)
  })

  // As they stand, xgrammar accepts more than these.
  test.each([
    'a[a-c]{2}b|aab|aacbb',
    'b|(?:a[ab]b|ac[bc]|acb)',
    '(?:[bc]{2}|[a-c]|[bc])[bc]c',
    '[bc]*[bc](?:b|a|c)[ab]b',
  ])('matches exactly %s', async (pattern) => {
    expect(await disagreements(pattern)).toEqual([])
  })

  test('matches exactly what any expression matches', async () => {
    const { pattern } = fc.letrec<{ pattern: string }>((tie) => ({
      pattern: fc.oneof(
        { maxDepth: 4, depthSize: 'medium' },
        fc.constantFrom('a', 'b', 'c', '[ab]', '[bc]', '[a-c]'),
        fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => a + b),
        fc.array(tie('pattern'), { minLength: 2, maxLength: 3 }).map((parts) => `(?:${parts.join('|')})`),
        fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => `(?:a${a}b|a${b}|ac${b})`),
        fc
          .tuple(tie('pattern'), fc.constantFrom('?', '*', '+', '{1,2}', '{2}', '{0,3}'))
          .map(([a, times]) => `(?:${a})${times}`),
      ),
    }))
    await fc.assert(
      fc.asyncProperty(
        pattern.filter((text) => text.length < 60),
        async (text) => {
          expect(await disagreements(text)).toEqual([])
        },
      ),
      { numRuns: 300 },
    )
  })
})

test('character ranges are the bytes of their UTF-8', () => {
  const point = fc.oneof(fc.integer({ min: 0, max: 0xd7ff }), fc.integer({ min: 0xe000, max: 0x10ffff }))
  const encoder = new TextEncoder()
  fc.assert(
    fc.property(point, point, fc.array(point, { minLength: 10 }), (a, b, tries) => {
      const [low, high] = [Math.min(a, b), Math.max(a, b)]
      const without: CharSet = charSet([low, high])
      const sequences = without.flatMap(([from, to]) => utf8Ranges(from, to))
      for (const one of [...tries, low, high]) {
        const bytes = encoder.encode(String.fromCodePoint(one))
        const matches = sequences.filter(
          (ranges) =>
            ranges.length === bytes.length &&
            ranges.every(([from, to], i) => from <= (bytes[i] ?? -1) && (bytes[i] ?? -1) <= to),
        )
        expect(matches.length).toBe(one !== 0 && one >= low && one <= high ? 1 : 0)
      }
    }),
  )
})

test('a complement holds what the set does not', () => {
  const range = fc
    .tuple(fc.nat({ max: 300 }), fc.nat({ max: 40 }))
    .map(([low, size]): [number, number] => [low, low + size])
  fc.assert(
    fc.property(fc.array(range, { maxLength: 5 }), fc.integer({ min: 1, max: 400 }), (ranges, point) => {
      const has = (set: CharSet): boolean => set.some(([low, high]) => low <= point && point <= high)
      const set = charSet(...ranges)
      expect(has(set)).toBe(ranges.some(([low, high]) => low <= point && point <= high))
      expect(has(complement(set))).toBe(!has(set))
    }),
  )
})
