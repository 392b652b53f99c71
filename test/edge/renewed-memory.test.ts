/** A memory of a slow store: nobody waits for what is in use, and nothing is older than it may be. */

import { expect, test } from 'vitest'
import { createRenewedMemory } from '../../edge/renewed-memory.ts'

/** A store whose answers come when the test says so. */
function slowStore() {
  let time = 0
  const asked: { key: string; answer: (value: string | undefined) => void; fail: () => void }[] = []
  const memory = createRenewedMemory<string>({
    read: (key) =>
      new Promise((resolve, reject) => {
        asked.push({ key, answer: resolve, fail: () => reject(new Error('the store is away')) })
      }),
    now: () => time,
    renewAgeMs: 1_000,
    mostAgeMs: 2_000,
    mostEntries: 10,
  })
  const deferred: Promise<unknown>[] = []
  const find = () => memory.find('a', (work) => deferred.push(work))
  const first = async (value: string | undefined) => {
    const found = find()
    asked.at(-1)!.answer(value)
    return found
  }
  return { memory, asked, deferred, find, first, pass: (ms: number) => (time += ms) }
}

test('what is in use is renewed behind a request, once, and no request waits for it', async () => {
  const { asked, deferred, find, first, pass } = slowStore()
  expect(await first('old')).toBe('old')
  pass(1_000)
  expect(await find()).toBe('old')
  expect(asked).toHaveLength(1)
  pass(1)
  expect(await Promise.all([find(), find(), find()])).toEqual(['old', 'old', 'old'])
  expect(asked).toHaveLength(2)
  asked[1]!.answer('new')
  await Promise.all(deferred)
  expect(await find()).toBe('new')
  pass(1_000)
  expect(await find()).toBe('new')
  expect(asked).toHaveLength(2)
})

test('an answer too old is read again before the request goes on, also while a renewal hangs', async () => {
  const { asked, find, first, pass } = slowStore()
  await first('old')
  pass(1_500)
  expect(await find()).toBe('old')
  pass(501)
  const waiting = find()
  expect(asked).toHaveLength(3)
  asked[2]!.answer('new')
  expect(await waiting).toBe('new')
})

test('a renewal that fails leaves the answer its age, and the next request tries again', async () => {
  const { asked, deferred, find, first, pass } = slowStore()
  await first('old')
  pass(1_200)
  await find()
  asked[1]!.fail()
  await Promise.all(deferred)
  expect(await find()).toBe('old')
  expect(asked).toHaveLength(3)
  pass(801)
  const waiting = find()
  asked[3]!.fail()
  await expect(waiting).rejects.toThrow('the store is away')
})

test('that there is nothing is remembered too, until it is forgotten', async () => {
  const { memory, asked, find, first } = slowStore()
  expect(await first(undefined)).toBeUndefined()
  expect(await find()).toBeUndefined()
  expect(asked).toHaveLength(1)
  memory.forget('a')
  expect(await first('made')).toBe('made')
})
