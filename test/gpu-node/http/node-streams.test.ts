import { readdir, readFile } from 'node:fs/promises'
import type { EventSourceMessage } from 'eventsource-parser'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type LoraxEvent, loraxEventSchema } from '../../../shared/api/lorax-reply.ts'
import { chatChunkSchema, completionChunkSchema } from '../../../shared/api/openai-reply.ts'
import { toBase64Url } from '../../../shared/base64url.ts'
import {
  nodeTag,
  parseEventId,
  RESUME_PATH,
  type ResumePoint,
  streamFingerprint,
} from '../../../shared/stream-resume.ts'
import { DELIVERED_HEADER, type Ticket } from '../../../shared/ticket.ts'
import { adapterNamed, type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { startFakeHub } from '../../support/fake-hub.ts'
import { TEST_NODE, ticketHeaders } from '../../support/mint-ticket.ts'
import { readEvents } from '../../support/sse-reader.ts'

const golden = JSON.parse(await readFile('models/demo/golden.json', 'utf8')) as {
  messages: string[]
  prompts: string[]
  greedy_ids: Record<string, number[][]>
  greedy_text: Record<string, string[]>
}
const prompt = golden.prompts[0] ?? ''
const baseText = golden.greedy_text.base?.[0] ?? ''
const baseIds = golden.greedy_ids.base?.[0] ?? []
const lorax = (parameters: object = {}) => ({ inputs: prompt, parameters: { max_new_tokens: 100, ...parameters } })
const chat = (fields: object = {}) => ({
  model: 'demo-base',
  messages: [{ role: 'user', content: golden.messages[0] }],
  temperature: 0,
  max_tokens: 100,
  stream: true,
  ...fields,
})

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(async () => {
  await node.close()
})

interface Streamed {
  text: string
  events: EventSourceMessage[]
}

async function stream(
  path: string,
  body: object,
  ticket: Partial<Ticket> = {},
  headers: Record<string, string> = {},
): Promise<Streamed> {
  const response = await node.post(path, body, ticket, headers)
  expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream'])
  const text = await response.text()
  const events: EventSourceMessage[] = []
  for await (const event of readEvents(new Response(text))) {
    events.push(event)
  }
  return { text, events }
}

const loraxEvents = ({ events }: Streamed): LoraxEvent[] =>
  events.map(({ data }) => loraxEventSchema.parse(JSON.parse(data)))
const chatChunks = ({ events }: Streamed) =>
  events.filter(({ data }) => data !== '[DONE]').map(({ data }) => chatChunkSchema.parse(JSON.parse(data)))
const contentOf = (streamed: Streamed, choice = 0): string =>
  chatChunks(streamed)
    .flatMap((chunk) => chunk.choices)
    .filter(({ index }) => index === choice)
    .map(({ delta }) => delta.content ?? '')
    .join('')
const deliveredHeader = (delivered: Record<string, number[]>) => ({
  [DELIVERED_HEADER]: toBase64Url(new TextEncoder().encode(JSON.stringify(delivered))),
})

describe('LoRAX’s stream', () => {
  test('has an event for each token, the whole text in the last, and an end', async () => {
    const streamed = await stream('/generate_stream', lorax({ details: true }))
    const events = loraxEvents(streamed)
    expect(events.map(({ token }) => token.id)).toEqual(baseIds)
    expect(events.slice(0, -1).every((event) => event.generated_text === null && event.details === null)).toBe(true)
    expect(events.at(-1)).toMatchObject({
      generated_text: baseText,
      details: { finish_reason: 'eos_token', generated_tokens: baseIds.length, prompt_tokens: 31, seed: null },
    })
    expect(streamed.events.map(({ id }) => id)).toEqual(
      baseIds.map((id, i) => `0:${i + 1}:${id}:${nodeTag(TEST_NODE)}`),
    )
    expect(streamed.text.endsWith('\n\n: end\n\n')).toBe(true)
    expect(streamed.text).not.toContain('[DONE]')
  })

  test('with a grammar the last token too carries the text', async () => {
    const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] }
    const events = loraxEvents(
      await stream('/generate_stream', lorax({ response_format: { type: 'json_object', schema } })),
    )
    expect(JSON.parse(events.at(-1)?.generated_text ?? '')).toEqual({ ok: expect.any(Boolean) })
    expect(events.filter((event) => event.generated_text !== null)).toHaveLength(1)
  })

  test('a refusal before the first token has its status', async () => {
    const response = await node.post('/generate_stream', lorax(), { adapter: adapterNamed('nobody') })
    expect(response.status).toBe(404)
  })

  test.each([1, 5, 12])('goes on after %i tokens that the client has, and repeats none', async (count) => {
    const headers = deliveredHeader({ 0: baseIds.slice(0, count) })
    const streamed = await stream('/generate_stream', lorax({ details: true }), {}, headers)
    const events = loraxEvents(streamed)
    expect(events.map(({ token }) => token.id)).toEqual(baseIds.slice(count))
    expect(events.at(-1)?.generated_text).toBe(baseText)
    expect(streamed.events[0]?.id).toBe(`0:${count + 1}:${baseIds[count]}:${nodeTag(TEST_NODE)}`)
  })

  test('a stream whose every token was delivered only ends', async () => {
    const streamed = await stream('/generate_stream', lorax(), {}, deliveredHeader({ 0: baseIds }))
    expect(streamed.text).toBe(': end\n\n')
  })
})

describe('OpenAI’s streams', () => {
  test('chat: role once, text, finish, usage if asked for, [DONE], end', async () => {
    const streamed = await stream('/v1/chat/completions', chat({ stream_options: { include_usage: true } }))
    const chunks = chatChunks(streamed)
    expect(contentOf(streamed)).toBe(baseText)
    expect(chunks.filter((chunk) => chunk.choices[0]?.delta.role !== undefined)).toHaveLength(1)
    expect(chunks[0]?.choices[0]?.delta.role).toBe('assistant')
    expect(chunks.map((chunk) => chunk.choices[0]?.finish_reason ?? null).filter((reason) => reason !== null)).toEqual([
      'stop',
    ])
    const usage = { prompt_tokens: 31, completion_tokens: baseIds.length, total_tokens: 31 + baseIds.length }
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage })
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true)
    expect(streamed.text.endsWith('data: [DONE]\n\n: end\n\n')).toBe(true)
  })

  test('chat: every token id is told once, in order', async () => {
    const { events } = await stream('/v1/chat/completions', chat())
    const ids = events.flatMap(({ id }) => (id === undefined ? [] : id.split(':')[2]?.split(',').map(Number)))
    expect(ids).toEqual(baseIds)
  })

  test('chat: what may begin a stop string waits; the stop string is never sent', async () => {
    const streamed = await stream('/v1/chat/completions', chat({ stop: ['thank you for yo'] }))
    expect(contentOf(streamed)).toBe('Dear Fiona, ')
  })

  test.each([
    ['cut', ['k you for yo']],
    ['held back to the end', ['our money.X', 'you.X', 'day.X']],
    ['sent as it comes', []],
  ])('chat: text that is %s has the logprobs that it has in a whole reply', async (_text, stop) => {
    const body = chat({ logprobs: true, stop })
    const streamed = chatChunks(await stream('/v1/chat/completions', body))
    const whole = await node.post('/v1/chat/completions', { ...body, stream: false })
    const { choices } = (await whole.json()) as { choices: { logprobs: { content: { token: string }[] } }[] }
    const logged = streamed.flatMap((chunk) => chunk.choices[0]?.logprobs?.content ?? [])
    expect(logged).toEqual(choices[0]?.logprobs.content)
    expect(logged.map(({ token }) => token)).not.toContain('<|end|>')
  })

  test('chat: several choices keep apart', async () => {
    const body = chat({ n: 2, temperature: 1, seed: 3 })
    const streamed = await stream('/v1/chat/completions', body)
    const whole = await node.post('/v1/chat/completions', { ...body, stream: false })
    const { choices } = (await whole.json()) as { choices: { message: { content: string } }[] }
    expect([contentOf(streamed, 0), contentOf(streamed, 1)]).toEqual(choices.map((choice) => choice.message.content))
  })

  test.each([2, 7])('chat: goes on elsewhere after %i tokens with the same text and one role', async (count) => {
    const body = chat({ temperature: 1.5, stop: ['refund'] })
    const whole = await stream('/v1/chat/completions', body, { seed: 11 })
    const ids = whole.events.flatMap(({ id }) => (id === undefined ? [] : (id.split(':')[2]?.split(',') ?? [])))
    const headers = deliveredHeader({ 0: ids.slice(0, count).map(Number) })
    const rest = await stream('/v1/chat/completions', body, { seed: 11 }, headers)
    const before = whole.events.filter(({ id }) => id !== undefined && Number(id.split(':')[1]) <= count)
    expect(contentOf({ ...whole, events: before }) + contentOf(rest)).toBe(contentOf(whole))
    expect(chatChunks(rest).some((chunk) => chunk.choices[0]?.delta.role !== undefined)).toBe(false)
  })

  test('completions: echo comes first, with the prompt’s logprobs', async () => {
    const body = { model: 'demo-base', prompt, echo: true, logprobs: 1, temperature: 0, max_tokens: 3, stream: true }
    const { events } = await stream('/v1/completions', body)
    const chunks = events
      .filter(({ data }) => data !== '[DONE]')
      .map(({ data }) => completionChunkSchema.parse(JSON.parse(data)))
    const text = chunks.map((chunk) => chunk.choices[0]?.text ?? '').join('')
    expect(text.startsWith(prompt)).toBe(true)
    const logged = chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.tokens ?? [])
    expect(logged.join('')).toBe(text)
    const offsets = chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.text_offset ?? [])
    expect(offsets).toEqual([...offsets].sort((a, b) => a - b))
  })
})

describe('a client that leaves', () => {
  test('frees its row within two steps; others go on; the adapter’s lease is given back', async () => {
    const leaving = new AbortController()
    const adapter = adapterNamed('pirate')
    const headers = await ticketHeaders({ adapter })
    const decodedBefore = (await node.built.engine.freshStats()).decodeTokens
    const body = JSON.stringify(lorax({ ignore_eos_token: true, max_new_tokens: 200 }))
    const response = await fetch(`${node.url}/generate_stream`, {
      method: 'POST',
      headers,
      body,
      signal: leaving.signal,
    })
    const other = node.post('/generate', lorax())
    await response.body?.getReader().read()
    leaving.abort()
    expect(await (await other).json()).toEqual({ generated_text: baseText })
    let stats = await node.built.engine.freshStats()
    while (stats.freeRows < stats.maxRows) {
      stats = await node.built.engine.freshStats()
    }
    expect(stats.decodeTokens - decodedBefore).toBeLessThan(200)
    expect(stats.maxAbortSteps).toBeLessThanOrEqual(2)
    // Given back by the HTTP thread, which hears of the end after the engine's thread.
    while (node.built.context.adapters.list().some((listing) => listing.leases > 0)) {
      await node.built.engine.freshStats()
    }
  })
})

describe('a dropped stream', () => {
  const body = chat({ temperature: 1.2 })
  const ask = async (lastEventId: string, ticket: Partial<Ticket>, asked: object = body) => {
    const fingerprint = await streamFingerprint('/v1/chat/completions', asked)
    return node.post(RESUME_PATH, { fingerprint, lastEventId }, ticket)
  }

  test('is remembered up to each event: what was delivered, and what the same text needs', async () => {
    const ticket = { requestId: 'resume-1', seed: 21, createdAt: 1_700_000_123 }
    const whole = await stream('/v1/chat/completions', body, ticket)
    const ids = whole.events.flatMap(({ id }) => (id === undefined ? [] : (id.split(':')[2]?.split(',') ?? [])))
    const seen = whole.events[4]
    const count = Number(seen?.id?.split(':')[1])
    expect(parseEventId(seen?.id ?? '')?.nodeTag).toBe(nodeTag(TEST_NODE))
    const point = (await (await ask(seen?.id ?? '', { ...ticket, seed: 99 })).json()) as ResumePoint
    const delivered = { 0: ids.slice(0, count).map(Number) }
    expect(point).toEqual({ seed: 21, createdAt: 1_700_000_123, digest: null, delivered })
    const rest = await stream('/v1/chat/completions', body, ticket, deliveredHeader(point.delivered))
    expect(contentOf({ ...whole, events: whole.events.slice(0, 5) }) + contentOf(rest)).toBe(contentOf(whole))
    // The client may break off again, and has still seen the earlier events.
    expect(await (await ask(seen?.id ?? '', ticket)).json()).toEqual(point)
    const last = whole.events.findLast(({ id }) => id !== undefined)?.id ?? ''
    expect(((await (await ask(last, ticket)).json()) as ResumePoint).delivered[0]).toEqual(ids.map(Number))
  })

  test.each([
    ['another request id', { requestId: 'resume-2' }, body],
    ['another tenant', { requestId: 'resume-1', tenantId: 'thief' }, body],
    ['another body', { requestId: 'resume-1' }, chat({ temperature: 1.3 })],
    ['a name that means another adapter now', { requestId: 'resume-1', adapter: adapterNamed('redact') }, body],
  ])('is not told to %s', async (_what, ticket, asked) => {
    const response = await ask('0:2:5', ticket, asked)
    expect([response.status, await response.json()]).toMatchObject([404, { code: 'resume_unknown' }])
  })
})

describe('progress', () => {
  test('is told to those who ask: the load, the queue, then the tokens', async () => {
    const adapter = adapterNamed('redact')
    const streamed = await stream('/generate_stream', lorax(), { adapter }, { 'x-progress': '1' })
    const progress = streamed.events.filter(({ event }) => event === 'ringlet-progress')
    expect(progress.map(({ data }) => (JSON.parse(data) as { phase: string }).phase)).toContain('queued')
    expect(streamed.events.findIndex(({ event }) => event === 'ringlet-progress')).toBe(0)
    // Its headers were too early to say what the edge meters and continues by.
    expect(streamed.text).toMatch(/\n: started \w{16,} \d+\n\n/)
    const tokens = { ...streamed, events: streamed.events.filter(({ event }) => event === undefined) }
    expect(loraxEvents(tokens).at(-1)?.generated_text).toBe(golden.greedy_text.redact?.[0])
  })

  test('a failure after the stream has opened is an event with a code', async () => {
    const headers = { 'x-progress': '1' }
    const streamed = await stream('/generate_stream', lorax(), { adapter: adapterNamed('nobody') }, headers)
    expect(JSON.parse(streamed.events.at(-1)?.data ?? '')).toMatchObject({ code: 'adapter_not_found' })
    expect(streamed.text.endsWith(': end\n\n')).toBe(true)
  })
})

describe('a load that takes long', () => {
  test('opens the stream, which says that it lives until the tokens come', async () => {
    const hub = await startFakeHub()
    const directory = 'models/demo/adapters/pirate'
    const names = await readdir(directory)
    const files = Object.fromEntries(
      await Promise.all(names.map(async (name) => [name, await readFile(`${directory}/${name}`)] as const)),
    )
    hub.commit({ id: 'slow/pirate', files })
    const release = hub.stall('slow/pirate')
    const slow = await startDemoNode([], { heartbeatMs: 20 }, { HF_ENDPOINT: hub.url })
    try {
      const adapter = { kind: 'single' as const, ref: { source: 'hub' as const, id: 'slow/pirate' } }
      const response = await slow.post('/generate_stream', lorax(), { adapter })
      expect(response.status).toBe(200)
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      while (!text.startsWith(':\n\n:\n\n')) {
        text += (await reader?.read())?.value ?? ''
      }
      release()
      for (let read = await reader?.read(); read?.done === false; read = await reader?.read()) {
        text += read.value
      }
      expect(text).toContain(JSON.stringify(golden.greedy_text.pirate?.[0]))
      expect(text.endsWith(': end\n\n')).toBe(true)
    } finally {
      await slow.close()
      await hub.close()
    }
  })
})
