/** Long texts of callers: encoded as short ones are, in a thread that others' texts survive, tenants in turn. */

import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterEach, describe, expect, test } from 'vitest'
import { CallerTextEncoder, type TextEncoderLimits } from '../../../gpu-node/text/caller-text-encoder.ts'
import { type Later, ThreadEncoder, type ThreadEncoderLimits } from '../../../gpu-node/text/thread-encoder.ts'
import { createTokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'
import { sentencePieceFiles } from '../../support/tiny-tokenizer.ts'

const directory = 'models/demo/base'
const files = await readTokenizerFiles(directory)
const tokenizer = createTokenizer(files)

const ends: (() => Promise<unknown>)[] = []
afterEach(async () => {
  await Promise.all(ends.splice(0).map((end) => end()))
})

function startThread(
  limits: Partial<ThreadEncoderLimits> = {},
  later?: Later,
  data = { directory, digest: files.digest },
) {
  const thread = new ThreadEncoder(data, limits, later)
  ends.push(() => thread.close())
  return thread
}

/** What is asked for later, to be done when the test says. */
function handTimer() {
  const waiting: { act: () => void; ms: number }[] = []
  const later: Later = (act, ms) => {
    const entry = { act, ms }
    waiting.push(entry)
    return () => {
      waiting.splice(waiting.indexOf(entry), 1)
    }
  }
  return { later, waiting }
}

describe('the thread', () => {
  test('gives the ids of the tokenizer, whatever the text', async () => {
    const thread = startThread()
    const hostile = [
      ...['a', ' ', '中', '\n', '1', '<', '😀', 'é', ' a', '<|end|>', '<|en', '\u0000', '\uD800', 'e\u0301', '\r\n\t'],
    ].map((part) => part.repeat(3_000))
    for (const text of ['', ...hostile]) {
      expect(await thread.encode(text, true)).toEqual(tokenizer.encode(text, true))
      expect(await thread.encode(text, false)).toEqual(tokenizer.encode(text, false))
    }
    const anyText = fc.string({ unit: 'binary', maxLength: 300 })
    await fc.assert(
      fc.asyncProperty(fc.array(anyText, { maxLength: 20 }), async (texts) => {
        const text = texts.join('<|user|>')
        expect(await thread.encode(text, true)).toEqual(tokenizer.encode(text, true))
      }),
      { numRuns: 50 },
    )
  })

  test('of a sentencepiece tokenizer too', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'ringlet-text-'))
    ends.push(() => rm(folder, { recursive: true }))
    const { tokenizer: json, config } = sentencePieceFiles()
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(json))
    await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
    const own = await readTokenizerFiles(folder)
    const thread = startThread({}, undefined, { directory: folder, digest: own.digest })
    const text = `hello ${'中 b'.repeat(2_000)}`
    expect(await thread.encode(text, true)).toEqual(createTokenizer(own).encode(text, true))
  })

  test('is there from the first text until there has been none for a while, and again after', async () => {
    const timer = handTimer()
    const thread = startThread({ idleMs: 1_234 }, timer.later)
    expect(thread.running).toBe(false)
    await thread.encode('a', true)
    await thread.encode('b', true)
    expect(thread.running).toBe(true)
    expect(timer.waiting.map(({ ms }) => ms)).toEqual([1_234])
    timer.waiting.pop()?.act()
    expect(thread.running).toBe(false)
    expect(await thread.encode('abc', true)).toEqual(tokenizer.encode('abc', true))
  })

  test('that dies fails its own text alone', async () => {
    const encoder = new CallerTextEncoder(tokenizer, startThread({ maxHeapMiB: 64 }), { charactersAtOnce: 10 })
    const encode = encoder.forRequest({ tenantId: 'a', signal: new AbortController().signal })
    const deadly = encode('a'.repeat(2_000_000), true)
    const next = encode('and the next text', true)
    await expect(deadly).rejects.toMatchObject({ code: 'internal', message: expect.stringContaining('ended') })
    expect(await next).toEqual(tokenizer.encode('and the next text', true))
    expect(encoder.inHand).toBe(0)
  })

  test('is ended by a text that takes too long', async () => {
    const timer = handTimer()
    const thread = startThread({ textMs: 77 }, timer.later)
    const slow = thread.encode('x', true)
    expect(timer.waiting.map(({ ms }) => ms)).toEqual([77])
    timer.waiting[0]?.act()
    await expect(slow).rejects.toMatchObject({ code: 'deadline_exceeded' })
    expect(await thread.encode('abc', true)).toEqual(tokenizer.encode('abc', true))
  })

  test('gives no ids of files that have changed since', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'ringlet-text-'))
    ends.push(() => rm(folder, { recursive: true }))
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
      await cp(join(directory, name), join(folder, name))
    }
    const { digest } = await readTokenizerFiles(folder)
    await writeFile(join(folder, 'tokenizer_config.json'), '{}')
    const thread = startThread({}, undefined, { directory: folder, digest })
    await expect(thread.encode('abc', true)).rejects.toMatchObject({
      code: 'internal',
      cause: { message: expect.stringContaining('have changed') },
    })
  })

  test('of a node that closes fails what it has with `node_draining`', async () => {
    const thread = startThread()
    const begun = expect(thread.encode('a'.repeat(100_000), true)).rejects.toMatchObject({ code: 'node_draining' })
    await thread.close()
    await begun
    await expect(thread.encode('a', true)).rejects.toMatchObject({ code: 'node_draining' })
  })
})

/** An encoder whose thread answers when the test says. */
function handEncoder(limits: Partial<TextEncoderLimits> = {}) {
  const begun: string[] = []
  let finish = (): void => {}
  const thread = {
    encode: (text: string) => {
      begun.push(text)
      return new Promise<number[]>((resolve) => {
        finish = () => resolve([text.length])
      })
    },
    close: async () => {},
  }
  const encoder = new CallerTextEncoder(tokenizer, thread, { charactersAtOnce: 0, ...limits })
  const ask = (tenantId: string, text: string, signal = new AbortController().signal) =>
    encoder.forRequest({ tenantId, signal })(text, true)
  const endOne = async (asked: Promise<unknown>) => {
    finish()
    await asked
    await new Promise(setImmediate)
  }
  return { encoder, begun, ask, endOne }
}

describe('tenants', () => {
  test('take turns: one’s many texts do not stand before another’s one', async () => {
    const { begun, ask, endOne } = handEncoder()
    const first = ask('greedy', 'g1')
    const rest = ['g2', 'g3', 'g4'].map((text) => ask('greedy', text))
    const other = ask('modest', 'm1')
    await endOne(first)
    await endOne(rest[0]!)
    await endOne(other)
    expect(begun).toEqual(['g1', 'g2', 'm1', 'g3'])
  })

  test('share the places: with many of one’s texts in hand another still finds one, and the rest are refused', async () => {
    const { encoder, ask } = handEncoder({ maxInHand: 16 })
    const refused: unknown[] = []
    for (let i = 0; i < 20; i++) {
      ask('greedy', `text ${i}`).catch((error) => refused.push(error.code))
    }
    await new Promise(setImmediate)
    expect(encoder.inHand).toBe(15)
    expect(refused).toEqual(Array.from({ length: 5 }, () => 'queue_full'))
    void ask('modest', 'm1')
    await new Promise(setImmediate)
    expect(encoder.inHand).toBe(16)
  })

  test('who leave give their place back, and their text is not encoded', async () => {
    const { encoder, begun, ask, endOne } = handEncoder({ maxInHand: 2 })
    const leaving = new AbortController()
    const first = ask('a', 'first')
    const left = ask('b', 'left', leaving.signal)
    await expect(ask('c', 'no place')).rejects.toMatchObject({ code: 'queue_full', retryAfterSeconds: 1 })
    leaving.abort(new Error('gone'))
    await expect(left).rejects.toThrow('gone')
    expect(encoder.inHand).toBe(1)
    const last = ask('c', 'last')
    await endOne(first)
    await endOne(last)
    expect(begun).toEqual(['first', 'last'])
    expect(encoder.inHand).toBe(0)
  })

  test('who left already are not listened to', async () => {
    const { begun, ask } = handEncoder()
    await expect(ask('a', 'text', AbortSignal.abort(new Error('gone')))).rejects.toThrow('gone')
    expect(begun).toEqual([])
  })
})

test('short texts stay where they are until those of one request are many', async () => {
  const { encoder, begun } = handEncoder({ charactersAtOnce: 10, charactersOfRequest: 25 })
  const encode = encoder.forRequest({ tenantId: 'a', signal: new AbortController().signal })
  expect(await encode('0123456789', true)).toEqual(tokenizer.encode('0123456789', true))
  expect(await encode('0123456789', true)).toEqual(tokenizer.encode('0123456789', true))
  expect(begun).toEqual([])
  void encode('0123456789', true)
  void encoder.forRequest({ tenantId: 'b', signal: new AbortController().signal })('eleven chars', true)
  await new Promise(setImmediate)
  expect(begun).toEqual(['0123456789'])
  expect(encoder.inHand).toBe(2)
})
