import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type RunningStack, startStack } from '../support/running-stack.ts'
import { readEvents } from '../support/sse-reader.ts'

let stack: RunningStack
beforeAll(async () => {
  stack = await startStack(['--nodes', '2', '--dtype', 'f32'])
})
afterAll(async () => {
  await stack?.stop()
})

const content = 'Hi, this is Ida from Graz. I would like to order 38 grey pencils.'
const body = (fields: object = {}) => ({
  model: 'pirate',
  messages: [{ role: 'user', content }],
  temperature: 1.4,
  max_tokens: 80,
  stream: true,
  ...fields,
})

interface Seen {
  node: string
  lastEventId: string
  /** By choice. */
  texts: string[]
}

/** Reads a stream up to an event, or to its end. */
async function read(headers: Record<string, string>, fields: object, upTo = Number.POSITIVE_INFINITY): Promise<Seen> {
  const response = await stack.post('/v1/chat/completions', body(fields), headers)
  expect(response.status).toBe(200)
  const seen: Seen = { node: response.headers.get('x-ringlet-node') ?? '', lastEventId: '', texts: [] }
  let count = 0
  for await (const { id, data } of readEvents(response)) {
    if (data === '[DONE]') {
      break
    }
    const { choices } = JSON.parse(data) as { choices: { index: number; delta: { content?: string } }[] }
    for (const { index, delta } of choices) {
      seen.texts[index] = (seen.texts[index] ?? '') + (delta.content ?? '')
    }
    seen.lastEventId = id ?? seen.lastEventId
    count++
    if (count === upTo) {
      break
    }
  }
  return seen
}

/** Either may have nothing of a choice. */
function joined(first: Seen, rest: Seen): string[] {
  const choices = Math.max(first.texts.length, rest.texts.length)
  return Array.from({ length: choices }, (_, choice) => (first.texts[choice] ?? '') + (rest.texts[choice] ?? ''))
}

describe('a client that comes back with Last-Event-ID', () => {
  test('gets the rest, several choices and all, sampled with a seed that it never chose', async () => {
    const headers = { 'x-request-id': crypto.randomUUID() }
    const first = await read(headers, { n: 2 }, 9)
    const again = { ...headers, 'last-event-id': first.lastEventId }
    const rest = await read(again, { n: 2 })
    // The same event again: what the client saw since does not count.
    expect(await read(again, { n: 2 })).toMatchObject({ texts: rest.texts })
    const further = await read(again, { n: 2 }, 5)
    const last = await read({ ...headers, 'last-event-id': further.lastEventId }, { n: 2 })
    expect(joined(further, last)).toEqual(rest.texts)
  })

  test('gets it from another node when the one that began drains', async () => {
    const fields = { seed: 8 }
    const whole = await read({}, fields)
    const headers = { 'x-request-id': crypto.randomUUID() }
    const first = await read(headers, fields, 6)
    expect((await stack.admin('POST', `/nodes/${first.node}/drain`, {})).status).toBe(200)
    // Isolates hear of it within two seconds; until then the node itself may still answer.
    const again = { ...headers, 'last-event-id': first.lastEventId }
    let rest = await read(again, fields)
    while (rest.node === first.node) {
      expect(joined(first, rest)).toEqual(whole.texts)
      rest = await read(again, fields)
    }
    expect(joined(first, rest)).toEqual(whole.texts)
    expect((await stack.admin('POST', `/nodes/${first.node}/drain`, { draining: false })).status).toBe(200)
  })

  test('is told with a code that the node which ran it is gone, and its memory with it', async () => {
    const headers = { 'x-request-id': crypto.randomUUID() }
    const first = await read(headers, {}, 6)
    const { pid } = (await stack.reread()).nodes.find(({ id }) => id === first.node)!
    process.kill(pid, 'SIGKILL')
    const again = { ...headers, 'last-event-id': first.lastEventId }
    const refused = await stack.post('/v1/chat/completions', body(), again)
    expect([refused.status, await refused.json()]).toMatchObject([404, { error: { code: 'resume_unknown' } }])
  })
})
