/**
 * A stream of a real node cut behind any of its events, as the edge sees it when the node dies there, and continued from what the edge
 * knows to be delivered: the client has each choice's text, finish and scores once, as in the undisturbed stream.
 */

import { readFile } from 'node:fs/promises'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createEventFramer, type StreamProgress } from '../../../edge/proxy/event-framer.ts'
import { toBase64Url } from '../../../shared/base64url.ts'
import { DELIVERED_HEADER, type Delivered, type Ticket } from '../../../shared/ticket.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { readEvents } from '../../support/sse-reader.ts'

const { messages, prompts } = JSON.parse(await readFile('models/demo/golden.json', 'utf8')) as {
  messages: string[]
  prompts: string[]
}
const shared = { model: 'demo-base', stream: true, stream_options: { include_usage: true } }
const chat = { ...shared, messages: [{ role: 'user', content: messages[0] }], max_tokens: 40 }
const schema = { type: 'object', properties: { ok: { type: 'boolean' }, why: { type: 'string' } }, required: ['ok'] }
const tool = { type: 'function', function: { name: 'note', parameters: schema } }

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode(['--max-positions', '1024'])
})
afterAll(() => node.close())

async function ask(path: string, body: object, delivered?: Delivered, limits: Ticket['limits'] = {}): Promise<string> {
  const headers: Record<string, string> = {}
  if (delivered !== undefined) {
    headers[DELIVERED_HEADER] = toBase64Url(new TextEncoder().encode(JSON.stringify(delivered)))
  }
  const response = await node.post(
    path,
    body,
    { seed: 11, createdAt: 1_700_000_000, requestId: 'cut', limits },
    headers,
  )
  expect(response.status).toBe(200)
  return response.text()
}

/** What a client makes of a stream: for each choice all that its chunks said, in order, and what came once for all. */
async function made(text: string) {
  const choices = new Map<number, Record<string, unknown[]>>()
  const whole: unknown[] = []
  for await (const { data } of readEvents(new Response(text))) {
    const chunk =
      data === '[DONE]' ? data : (JSON.parse(data) as { choices: Record<string, unknown>[]; usage?: unknown })
    if (typeof chunk === 'string' || chunk.choices.length === 0) {
      whole.push(typeof chunk === 'string' ? chunk : chunk.usage)
      continue
    }
    for (const { index, ...said } of chunk.choices) {
      const choice = choices.get(index as number) ?? {}
      choices.set(index as number, choice)
      collect(choice, said)
    }
  }
  return { choices: [...choices].sort(([a], [b]) => a - b), whole }
}

/** Texts are joined: where a chunk ends is not for a client to build on. */
function collect(into: Record<string, unknown[]>, said: object, path = ''): void {
  for (const [name, value] of Object.entries(said)) {
    const at = `${path}.${name}`
    if (typeof value === 'string' && ['content', 'text', 'arguments'].includes(name)) {
      into[at] = [`${into[at]?.[0] ?? ''}${value}`]
    } else if (Array.isArray(value)) {
      for (const entry of value) {
        collect(into, typeof entry === 'object' && entry !== null ? entry : { entry }, at)
      }
    } else if (typeof value === 'object' && value !== null) {
      collect(into, value, at)
    } else if (value !== null && name !== 'index') {
      // Scores differ in the last digits with what else ran in the batch.
      into[at] = [...(into[at] ?? []), typeof value === 'number' ? Number(value.toFixed(4)) : value]
    }
  }
}

test.each<[string, string, object]>([
  ['one choice', '/v1/chat/completions', { ...chat, max_tokens: 100, temperature: 0 }],
  ['choices that the model ends', '/v1/chat/completions', { ...chat, max_tokens: 100, n: 3, temperature: 1, seed: 3 }],
  [
    'choices that a stop string ends',
    '/v1/chat/completions',
    { ...chat, n: 3, temperature: 1.5, seed: 5, stop: ['e'] },
  ],
  ['scored choices', '/v1/chat/completions', { ...chat, n: 2, max_tokens: 8, temperature: 1.5, logprobs: true }],
  [
    'prompts of which one ends where text is held back',
    '/v1/completions',
    {
      ...shared,
      prompt: prompts.slice(0, 3),
      max_tokens: 5,
      temperature: 1.2,
      seed: 2,
      stop: ['en zz', 'a zz', 'r zz', ' zz'],
    },
  ],
  [
    'echoed prompts',
    '/v1/completions',
    { ...shared, prompt: prompts.slice(0, 2), echo: true, logprobs: 1, max_tokens: 6, temperature: 1, seed: 2 },
  ],
  [
    'choices under a grammar',
    '/v1/chat/completions',
    {
      ...chat,
      n: 3,
      temperature: 1,
      seed: 4,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema } },
    },
  ],
  [
    'choices that call tools',
    '/v1/chat/completions',
    { ...chat, n: 2, temperature: 1, seed: 4, tools: [tool], tool_choice: 'required' },
  ],
])('%s: cut anywhere', async (_what, path, body) => {
  const undisturbed = await ask(path, body)
  const expected = await made(undisturbed)
  const events = undisturbed.split(/(?<=\n\n)/)
  expect(events.at(-1)).toBe(': end\n\n')
  const step = Math.max(1, Math.floor(events.length / 24))
  for (let cut = 0; cut < events.length; cut += step) {
    const progress: StreamProgress = { delivered: {}, tokens: 0 }
    const seen = through(events.slice(0, cut).join(''), progress)
    const rest = through(await ask(path, body, progress.delivered), progress)
    expect(await made(seen + rest), `cut behind event ${cut} of ${events.length}`).toEqual(expected)
  }
})

test('a stream that comes back to a smaller limit than it has used ends with that', async () => {
  const progress: StreamProgress = { delivered: {}, tokens: 0 }
  const path = '/v1/chat/completions'
  through(
    (await ask(path, chat))
      .split('[DONE]')[0]!
      .split(/(?<=\n\n)/)
      .slice(0, 6)
      .join(''),
    progress,
  )
  const { choices } = await made(await ask(path, chat, progress.delivered, { maxNewTokens: 3 }))
  expect(choices).toEqual([[0, { '.finish_reason': ['length'] }]])
})

/** What the edge passes on of it. */
function through(text: string, progress: StreamProgress): string {
  const framer = createEventFramer(progress)
  const out = framer.push(new TextEncoder().encode(text))
  return new TextDecoder().decode(Buffer.concat(framer.ended() ? [...out, ...framer.rest()] : out))
}
