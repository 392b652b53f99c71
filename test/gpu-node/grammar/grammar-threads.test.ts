/** What happens in one caller's grammar must not reach another's sequence. */

import { afterEach, describe, expect, test } from 'vitest'
import { GrammarReader } from '../../../gpu-node/grammar/grammar-reader.ts'
import { DEFAULT_GRAMMAR_LIMITS } from '../../../gpu-node/grammar/grammar-service.ts'
import { allowedTokens, createHarness, EOS, type Harness, seededRandom } from './grammar-harness.ts'

/** Compiles for half a second or more: a thousand states, each weighed against the whole vocabulary. */
const SLOW = {
  kind: 'regex',
  pattern: '([a-z ]{1,120}[A-Z ]{1,120}){1,8}x{1,9}([0-9a-f ]{100,128}|[^a-f]{90,127}){9}',
} as const

/** Eight times as many states: several seconds, of which only `compileMs` are waited for. */
const ENDLESS = {
  kind: 'regex',
  pattern: '([a-z ]{1,128}[A-Z ]{1,128}){1,40}x{1,9}([0-9a-f ]{100,128}|[^a-f]{90,127}){80}',
} as const

let harness: Harness

afterEach(() => harness?.close())

test('one tenant’s many large schemas are not read before another’s only one', async () => {
  const reader = new GrammarReader({ ...DEFAULT_GRAMMAR_LIMITS, readMs: 60_000 })
  const large = (name: number) => ({
    kind: 'json_schema' as const,
    schema: { properties: Object.fromEntries(Array.from({ length: 500 }, (_, i) => [`${name}_${i}`, true])) },
    strict: true,
  })
  let read = 0
  const many = Array.from({ length: 8 }, (_, name) => reader.read(large(name), 'many').then(() => read++))
  await reader.read({ kind: 'regex', pattern: 'a' }, 'one')
  // The one in hand, and the next in turn.
  expect(read).toBeLessThanOrEqual(2)
  await Promise.all(many)
  await reader.close()
})

describe('while a grammar compiles', () => {
  test('the masks of a running sequence do not wait for it', async () => {
    harness = await createHarness({ compileMs: 60_000 })
    const lease = await harness.service.acquire({ kind: 'regex', pattern: '[a-z ]+' })
    harness.masks.begin('running', lease.grammarId, new Int32Array(0))
    await harness.nextMask('running')

    const startedAt = performance.now()
    let compiled: number | undefined
    const slow = harness.service.acquire(SLOW).then((slowLease) => {
      compiled = performance.now() - startedAt
      slowLease.release()
      return slowLease
    })
    const random = seededRandom(1)
    let served = 0
    while (compiled === undefined) {
      const mask = await harness.nextMask('running')
      const allowed = allowedTokens(mask ?? new Int32Array(0)).filter((id) => id !== EOS)
      harness.masks.accept('running', allowed[Math.floor(random() * allowed.length)] ?? EOS)
      served += 1
    }
    const { compileMs } = await slow
    expect(compileMs).toBeGreaterThan(100)
    // Far more than one mask came while the other thread was compiling: none of them had to wait for its end.
    expect(served).toBeGreaterThan(compileMs / 20)
    harness.masks.end('running')
    lease.release()
  })

  test('one that takes too long is refused, and its thread replaced', async () => {
    harness = await createHarness({ compileMs: 800 })
    const lease = await harness.service.acquire({ kind: 'regex', pattern: 'a[0-9]b' })
    harness.masks.begin('running', lease.grammarId, new Int32Array(0))
    const error = await harness.service.acquire(ENDLESS).catch((e: unknown) => e)
    expect(error).toMatchObject({
      code: 'grammar_invalid',
      message: expect.stringMatching(/longer than 800 ms to compile/),
    })
    for (const text of ['a', '5', 'b']) {
      const [token] = harness.tokenizer.encode(text, false)
      const mask = await harness.nextMask('running')
      expect(allowedTokens(mask ?? new Int32Array(0))).toContain(token)
      harness.masks.accept('running', token ?? EOS)
    }
    expect(await harness.nextMask('running')).toBeUndefined()
    harness.masks.end('running')
    lease.release()
  })

  test('many ask for the same grammar and it is compiled once', async () => {
    harness = await createHarness()
    const leases = await Promise.all(Array.from({ length: 12 }, () => harness.service.acquire({ kind: 'json_object' })))
    expect(new Set(leases.map((lease) => lease.grammarId)).size).toBe(1)
    expect(harness.service.stats()).toMatchObject({ compiles: 1, leases: 12, grammars: 1 })
    for (const lease of leases) {
      lease.release()
      lease.release()
    }
    expect(harness.service.stats().leases).toBe(0)
  })

  test('more grammars than threads wait for a sequence to end, and no longer than allowed', async () => {
    harness = await createHarness({ maxMatchers: 2, maxWaitMs: 200 })
    const first = await harness.service.acquire({ kind: 'regex', pattern: 'one' })
    const second = await harness.service.acquire({ kind: 'regex', pattern: 'two' })
    const refused = await harness.service.acquire({ kind: 'regex', pattern: 'three' }).catch((e: unknown) => e)
    expect(refused).toMatchObject({ code: 'queue_full' })
    const waiting = harness.service.acquire({ kind: 'regex', pattern: 'three' })
    first.release()
    const third = await waiting
    expect(harness.service.stats()).toMatchObject({ matchers: 2, leases: 2 })
    second.release()
    third.release()
  })
})

test('a tenant’s waiting grammars leave places for another’s, and those who wait keep theirs', async () => {
  harness = await createHarness({ maxMatchers: 1, maxWaiting: 9 })
  const running = await harness.service.acquire({ kind: 'regex', pattern: 'held' })
  const ask = (tenantId: string, pattern: string) => harness.service.acquire({ kind: 'regex', pattern }, { tenantId })
  const refused: string[] = []
  const waiting = Array.from({ length: 12 }, (_, i) =>
    ask('greedy', `g${i}`).then(
      (lease) => lease.release(),
      (error: { code: string }) => void refused.push(error.code),
    ),
  )
  await expect.poll(() => refused.length, { timeout: 20_000 }).toBe(4)
  const modest = ask('modest', 'm').then((lease) => lease.release())
  await expect.poll(() => harness.service.stats().waiting, { timeout: 20_000 }).toBe(9)
  running.release()
  await Promise.all([...waiting, modest])
  expect(refused).toEqual(['queue_full', 'queue_full', 'queue_full', 'queue_full'])
  expect(harness.service.stats()).toMatchObject({ waiting: 0, leases: 0 })
})

describe('a grammar thread that dies', () => {
  test('fails its sequences, and the next request gets a new one', async () => {
    harness = await createHarness()
    const lease = await harness.service.acquire({ kind: 'json_object' })
    harness.masks.begin('doomed', lease.grammarId, new Int32Array(0))
    await harness.nextMask('doomed')
    // A token id that no vocabulary has aborts xgrammar.
    harness.masks.accept('doomed', 1_000_000)
    await expect(harness.nextMask('doomed')).rejects.toThrow(/has ended|does not fit/)
    harness.masks.end('doomed')
    lease.release()
    expect(await harness.sample({ kind: 'regex', pattern: 'still here' }, seededRandom(1))).toBe('still here')
  })

  test('a sequence that begins after its thread is gone fails too', async () => {
    harness = await createHarness()
    harness.masks.begin('late', '99:1', new Int32Array(0))
    expect(harness.masks.mask('late')).toEqual({ kind: 'pending' })
    harness.masks.end('late')
    const lease = await harness.service.acquire({ kind: 'regex', pattern: 'x' })
    harness.masks.begin('unknown', `${lease.grammarId}9`, new Int32Array(0))
    await expect(harness.nextMask('unknown')).rejects.toThrow(/has ended/)
    harness.masks.end('unknown')
    lease.release()
  })
})
