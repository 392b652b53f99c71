import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createStopScanner } from '../../../gpu-node/text/stop-scanner.ts'
import { createTextStream } from '../../../gpu-node/text/text-stream.ts'
import { createTokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'

/** The slow, obvious version: after each character, does the text end with a stop string? */
function scanWhole(text: string, stops: string[]): { before: string; stop: string | undefined } {
  for (let end = 1; end <= text.length; end++) {
    const ended = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0]
    if (ended !== undefined) {
      return { before: text.slice(0, end - ended.length), stop: ended }
    }
  }
  return { before: text, stop: undefined }
}

describe('the stop scanner', () => {
  test('finds in pieces what the obvious version finds in the whole', () => {
    const letters = (maxLength: number) => fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength })
    fc.assert(
      fc.property(fc.array(letters(4), { maxLength: 12 }), fc.array(letters(5), { maxLength: 4 }), (pieces, stops) => {
        const scanner = createStopScanner(stops)
        let released = ''
        let stop: string | undefined
        for (const piece of pieces) {
          const scan = scanner.push(piece)
          released += scan.released
          stop = scan.match?.stop
          if (stop !== undefined) {
            break
          }
        }
        released += stop === undefined ? scanner.end() : ''
        expect({ before: released, stop }).toEqual(scanWhole(pieces.join(''), stops))
      }),
      { numRuns: 2000 },
    )
  })

  test('holds back no more than what may begin a stop string', () => {
    const scanner = createStopScanner(['<end>'])
    expect(scanner.push('text <e').released).toBe('text ')
    expect(scanner.push('lse').released).toBe('<else')
  })
})

describe('a text stream', async () => {
  const tokenizer = createTokenizer(await readTokenizerFiles('models/demo/base'))
  const answer = tokenizer.encode('Dear Fiona, thank you for your message.<|end|>', false)
  const read = (stop: string[], keepStopText: boolean) => {
    const stream = createTextStream(tokenizer, { stop, keepStopText, standsAlone: true })
    const steps = []
    for (const id of answer) {
      steps.push(stream.push(id))
      if (steps.at(-1)?.stopped) {
        return { steps, text: stream.text, stopped: true }
      }
    }
    stream.end()
    return { steps, text: stream.text, stopped: false }
  }

  test('without a stop is the whole text, special tokens only in the token texts', () => {
    const { steps, text, stopped } = read([], false)
    expect(text).toBe('Dear Fiona, thank you for your message.')
    expect(stopped).toBe(false)
    expect(steps.map((step) => step.tokenText).join('')).toBe('Dear Fiona, thank you for your message.<|end|>')
  })

  test('cuts a stop string off for OpenAI and keeps it for LoRAX, across token borders and inside tokens', () => {
    expect(read(['thank you for yo'], false)).toMatchObject({ text: 'Dear Fiona, ', stopped: true })
    const kept = read(['thank you for yo'], true)
    expect(kept).toMatchObject({ text: 'Dear Fiona, thank you for yo', stopped: true })
    expect(kept.steps.map((step) => step.tokenText).join('')).toBe('Dear Fiona, thank you for yo')
  })

  test('takes a special token as a stop string', () => {
    expect(read(['<|end|>'], false)).toMatchObject({ text: 'Dear Fiona, thank you for your message.', stopped: true })
  })

  test('sends what it held back when the stop string does not come', () => {
    expect(read(['message. Bye'], false)).toMatchObject({
      text: 'Dear Fiona, thank you for your message.',
      stopped: false,
    })
  })
})
