/** The framer against bytes cut anywhere: what it lets through can always be continued by another node. */

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createEventFramer, StreamGapError, type StreamProgress } from '../../../edge/proxy/event-framer.ts'
import { createRetryBudget } from '../../../edge/proxy/retry-budget.ts'

const encoder = new TextEncoder()
const newProgress = (): StreamProgress => ({ delivered: {}, tokens: 0 })
const textOf = (chunks: readonly Uint8Array[]) => new TextDecoder().decode(Buffer.concat(chunks))

/** Gives the text to a framer in pieces cut at the given places, and collects what comes out. */
function run(text: string, cuts: readonly number[], progress = newProgress()) {
  const framer = createEventFramer(progress)
  const bytes = encoder.encode(text)
  const out: Uint8Array[] = []
  let from = 0
  for (const to of [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))]
    .sort((a, b) => a - b)
    .concat(bytes.length)) {
    // A copy, as the network gives it: pieces share no memory.
    out.push(...framer.push(bytes.slice(from, to)))
    from = to
  }
  return { out: textOf(out), progress, framer }
}

const STREAM = [
  'data: {"role":"assistant"}\n\n',
  'id: 0:1:11\ndata: {"text":"ä"}\n\n',
  ':\n\n',
  'id: 1:1:21\r\ndata: {"text":"ü"}\r\n\r\n',
  'id: 0:3:12,13\ndata: {"text":"bc"}\n\n',
  'data: {"usage":4}\n\n',
  'data: [DONE]\n\n',
  ': end\n\n',
].join('')

test('a whole stream passes unchanged, wherever the network cuts it', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 40 }), (cuts) => {
      const { out, progress, framer } = run(STREAM, cuts)
      expect(out).toBe(STREAM)
      expect(framer.ended()).toBe(true)
      expect(progress).toEqual({ delivered: { 0: [11, 12, 13], 1: [21] }, tokens: 4 })
    }),
  )
})

test('cut off anywhere and continued from what was delivered, the client has the same events, none twice', () => {
  const events = STREAM.split(/(?<=\n\r?\n)/)
  const tokenEvents = events.filter((event) => event.startsWith('id:'))
  fc.assert(
    fc.property(fc.nat(STREAM.length), fc.array(fc.nat(), { maxLength: 10 }), (length, cuts) => {
      const { out, progress, framer } = run(STREAM.slice(0, length), cuts)
      if (framer.ended()) {
        return
      }
      // The next node: role unless it was delivered, the tokens that are missing, the same ending.
      const begun = progress.delivered['0'] !== undefined
      const left = tokenEvents.filter((event) => {
        const [, choice, count] = /^id: (\d):(\d)/.exec(event)!
        return Number(count) > (progress.delivered[choice!]?.length ?? 0)
      })
      const ending = events.slice(-3)
      const rest = run([...(begun ? [] : [events[0]!]), ...left, ...ending].join(''), [], progress)
      expect((out + rest.out).replace(':\n\n', '')).toBe(STREAM.replace(':\n\n', ''))
    }),
  )
})

describe('an event stream that does not follow', () => {
  const delivered = (): StreamProgress => ({ delivered: { 0: [1, 2] }, tokens: 2 })

  test('repeats are dropped', () => {
    const { out, progress } = run('id: 0:2:2\ndata: again\n\nid: 0:3:3\ndata: new\n\n', [], delivered())
    expect(out).toBe('id: 0:3:3\ndata: new\n\n')
    expect(progress.delivered['0']).toEqual([1, 2, 3])
  })

  test.each(['id: 0:4:4', 'id: 0:4:3', 'id: nonsense', 'id: 0:3:'])('%s is a gap, and nothing of it passes', (line) => {
    const progress = delivered()
    expect(() => run(`${line}\ndata: x\n\n`, [], progress)).toThrow(StreamGapError)
    expect(progress.delivered['0']).toEqual([1, 2])
  })

  test('an event without end is refused before it fills the memory', () => {
    const framer = createEventFramer(newProgress())
    const piece = encoder.encode('x'.repeat(1024 * 1024))
    expect(() => {
      for (let n = 0; n < 6; n++) {
        framer.push(piece)
      }
    }).toThrow(StreamGapError)
  })
})

test('an opening event with `id: 1:0:` counts the choice as begun', () => {
  const { out, progress } = run('id: 1:0:\ndata: role\n\n', [])
  expect(out).toBe('id: 1:0:\ndata: role\n\n')
  expect(progress.delivered).toEqual({ 1: [] })
})

test('the retry budget: a reserve at once, then a fifth of the requests and a little by time', () => {
  let time = 0
  const budget = createRetryBudget(() => time)
  const takeAll = () => {
    let taken = 0
    while (budget.take()) {
      taken += 1
    }
    return taken
  }
  expect(takeAll()).toBe(100)
  for (let n = 0; n < 51; n++) {
    budget.noteRequest()
  }
  expect(takeAll()).toBe(10)
  time += 2_000
  expect(takeAll()).toBe(10)
})
