import { afterAll, beforeAll, expect, test } from 'vitest'
import { createEventFramer } from '../../../edge/proxy/event-framer.ts'
import { completionChunkSchema, completionSchema } from '../../../shared/api/openai-reply.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { readEvents } from '../../support/sse-reader.ts'

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode(['--max-positions', '1024'])
})
afterAll(async () => {
  await node.close()
})

const prompt = 'The 🦊 fox jumps over the lazy 🐕 dog and on. '.repeat(30)
const body = { model: 'demo-base', prompt, echo: true, logprobs: 20, temperature: 0, max_tokens: 3 }

async function stream(fields: object = {}) {
  const response = await node.post('/v1/completions', { ...body, ...fields, stream: true })
  expect(response.status).toBe(200)
  const bytes = new Uint8Array(await response.arrayBuffer())
  const events = []
  for await (const event of readEvents(new Response(bytes))) {
    if (event.data !== '[DONE]') {
      events.push(event)
    }
  }
  const choices = events.map(({ data }) => completionChunkSchema.parse(JSON.parse(data)).choices[0]!)
  return { bytes, events, choices }
}

test('a scored echo comes in several events that join to the whole reply’s', async () => {
  const whole = completionSchema.parse(await (await node.post('/v1/completions', body)).json()).choices[0]!
  const { events, choices } = await stream()
  expect(choices.filter((_, i) => events[i]?.id === undefined).length).toBeGreaterThanOrEqual(1)
  expect(Math.max(...choices.map(({ logprobs }) => logprobs?.tokens.length ?? 0)) * 21).toBeLessThanOrEqual(10_021)
  expect(choices.map(({ text }) => text).join('')).toBe(whole.text)
  expect(choices.flatMap(({ logprobs }) => logprobs?.tokens ?? [])).toEqual(whole.logprobs?.tokens)
  expect(choices.flatMap(({ logprobs }) => logprobs?.text_offset ?? [])).toEqual(whole.logprobs?.text_offset)
  expect(choices.flatMap(({ logprobs }) => logprobs?.top_logprobs ?? [])).toHaveLength(
    whole.logprobs?.top_logprobs?.length ?? -1,
  )
  expect(choices.every(({ text }) => !/\p{Surrogate}/u.test(text))).toBe(true)
})

test('the edge passes the parts on with the first token, so that another node begins anew or not at all', async () => {
  const { bytes } = await stream()
  const progress = { delivered: {}, tokens: 0 }
  const framer = createEventFramer(progress)
  const firstId = new TextDecoder().decode(bytes).indexOf('id: 0:1:')
  const passed = framer.push(bytes.slice(0, firstId)).map((part) => new TextDecoder().decode(part))
  expect(passed.join('')).not.toContain('text_completion')
  expect(Buffer.concat([...framer.push(bytes.slice(firstId)), ...framer.rest()]).includes('text_completion')).toBe(true)
  expect(progress.tokens).toBeGreaterThan(0)
})

test('more prompt scores than a node holds are refused before the stream begins', async () => {
  const { limits } = node.built.context
  const most = limits.maxScores
  limits.maxScores = 1000
  const refused = await node.post('/v1/completions', { ...body, stream: true })
  limits.maxScores = most
  expect([refused.status, await refused.json()]).toMatchObject([
    400,
    { error: { code: 'field_invalid', param: 'logprobs' } },
  ])
  const { running, waiting } = await node.built.engine.freshStats()
  expect([running, waiting]).toEqual([0, 0])
})
