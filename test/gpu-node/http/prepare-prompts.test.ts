import { beforeAll, expect, test } from 'vitest'
import { type PromptParts, preparePrompts } from '../../../gpu-node/http/prepare-prompt.ts'
import { CallerTextEncoder } from '../../../gpu-node/text/caller-text-encoder.ts'
import { ThreadEncoder } from '../../../gpu-node/text/thread-encoder.ts'
import { createTokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'
import { detectToolFormat } from '../../../gpu-node/tools/tool-format.ts'

const limits = { maxPositions: 512, vocabSize: 512, maxNewTokens: undefined, promptField: 'prompt' as const }
const prompts = Array.from({ length: 128 }, (_, i) => ({ kind: 'text' as const, text: `order number ${i}` }))
let parts: PromptParts
beforeAll(async () => {
  const files = await readTokenizerFiles('models/demo/base')
  const tokenizer = createTokenizer(files, [])
  const textEncoder = new CallerTextEncoder(tokenizer, new ThreadEncoder({ directory: 'models/demo/base', digest: '' }))
  parts = { tokenizer, textEncoder, chatTemplate: undefined, toolFormat: detectToolFormat([]) }
})

/** Counts the event loop's turns until the work has settled. */
async function turnsOf(work: Promise<unknown>): Promise<number> {
  let turns = 0
  let settled = false
  const turn = (): void => {
    if (!settled) {
      turns++
      setImmediate(turn)
    }
  }
  setImmediate(turn)
  await work.catch(() => undefined)
  settled = true
  return turns
}

test('between two prompts of a list the event loop serves others', async () => {
  const work = preparePrompts(prompts, {}, limits, parts, { tenantId: 'a', signal: new AbortController().signal })
  expect(await turnsOf(work)).toBeGreaterThanOrEqual(126)
  const prepared = await work
  expect(prepared.map(({ text }) => text)).toEqual(prompts.map(({ text }) => text))
})

test('a client that leaves ends it', async () => {
  const leaving = new AbortController()
  const work = preparePrompts(prompts, {}, limits, parts, { tenantId: 'a', signal: leaving.signal })
  const outcome = expect(work).rejects.toThrow('gone')
  setImmediate(() => leaving.abort(new Error('gone')))
  expect(await turnsOf(work)).toBeLessThan(20)
  await outcome
})
