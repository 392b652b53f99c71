/** A node that is sent long texts: others are answered meanwhile, and refusals are those of any text. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { ticketHeaders } from '../../support/mint-ticket.ts'

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode(['--max-positions', '1024'])
})
afterAll(() => node.close())

/** Letters without a space: the tokenizer takes long. */
const RUN = 'ab'.repeat(65_500)
const ANY = { action: 'generate', tenantId: 'long' } as const

/** Once `count` long texts wait for the thread or are in it. */
async function inHand(count: number): Promise<void> {
  await expect.poll(() => node.built.context.textEncoder.inHand, { interval: 1 }).toBe(count)
}

describe('while a run of 131,000 characters is encoded', () => {
  test('others are answered', async () => {
    const order: string[] = []
    const long = node.post('/tokenize', { inputs: RUN }, { action: 'tokenize', tenantId: 'long' }).then((reply) => {
      order.push('long')
      return reply.json()
    })
    await inHand(1)
    const short = await node.post('/tokenize', { inputs: 'a short text' }, { action: 'tokenize' })
    const health = await fetch(`${node.url}/health`)
    order.push('short')
    expect([short.status, health.status]).toEqual([200, 200])
    expect(((await long) as unknown[]).length).toBe(65_500)
    expect(order).toEqual(['short', 'long'])
  })

  const part = 'ab'.repeat(4_500)
  const messages = [{ role: 'user', content: part }]
  test.each<[string, Record<string, unknown>, 'generate' | 'embed']>([
    ['/generate', { inputs: part }, 'generate'],
    ['/v1/completions', { prompt: ['a', part] }, 'generate'],
    ['/v1/chat/completions', { messages }, 'generate'],
    ['/embed', { inputs: part }, 'embed'],
    ['/v1/embeddings', { input: ['a', part] }, 'embed'],
  ])('a long text of %s waits for its turn and is then refused as too long', async (path, fields, action) => {
    const blocking = node.post('/tokenize', { inputs: RUN }, { action: 'tokenize', tenantId: 'long' })
    await inHand(1)
    const body = path.startsWith('/v1') ? { model: 'demo-base', ...fields } : fields
    const waiting = node.post(path, body, { action })
    await inHand(2)
    await (await blocking).arrayBuffer()
    const reply = await waiting
    expect(reply.status).toBe(path.startsWith('/v1') ? 400 : 422)
    expect(await reply.text()).toMatch(/prompt_too_long|context_length_exceeded/)
    await inHand(0)
  })

  test('who hangs up gives the place back', async () => {
    const blocking = node.post('/tokenize', { inputs: RUN }, { action: 'tokenize', tenantId: 'long' })
    await inHand(1)
    const leaving = new AbortController()
    const left = fetch(`${node.url}/tokenize`, {
      method: 'POST',
      headers: await ticketHeaders({ action: 'tokenize' }),
      body: JSON.stringify({ inputs: RUN }),
      signal: leaving.signal,
    })
    await inHand(2)
    leaving.abort()
    await expect(left).rejects.toThrow()
    await inHand(1)
    await (await blocking).arrayBuffer()
  })
})

test('/tokenize describes a long text as it does a short one', async () => {
  const text = 'Héllo <|user|> wörld 中😀'
  const times = 700
  const spans = async (inputs: string) => {
    const reply = await node.post('/tokenize', { inputs, add_special_tokens: false }, { action: 'tokenize' })
    expect(reply.headers.get('content-type')).toBe('application/json')
    return (await reply.json()) as { id: number; text: string; start: number; stop: number }[]
  }
  const one = await spans(text)
  const length = [...text].length
  const expected = Array.from({ length: times }, (_, i) =>
    one.map((span) => ({ ...span, start: span.start + i * length, stop: span.stop + i * length })),
  ).flat()
  expect(await spans(text.repeat(times))).toEqual(expected)
})

describe('a text that cannot fit', () => {
  const generate = (inputs: string) => node.post('/generate', { inputs }, ANY)

  test('is refused after as much of it as shows it', async () => {
    const reply = await generate(RUN)
    expect(reply.status).toBe(422)
    expect(await reply.json()).toMatchObject({
      code: 'prompt_too_long',
      error: expect.stringMatching(/`inputs` must have less than 1023 tokens\. Given: more than \d+$/),
    })
  })

  test('is not encoded where its length alone says so', async () => {
    // No token of the demo has more than 13 characters.
    const most = 13 * 1024
    const seen: number[] = []
    const { tokenizer, textEncoder } = node.built.context
    const watched = Object.create(textEncoder, {
      forRequest: {
        value: (caller: Parameters<typeof textEncoder.forRequest>[0]) => {
          const real = textEncoder.forRequest(caller)
          return (text: string, special: boolean) => {
            seen.push(text.length)
            return real(text, special)
          }
        },
      },
    }) as typeof textEncoder
    node.built.context.textEncoder = watched
    try {
      expect(tokenizer.mostCharactersPerToken).toBe(13)
      const over = await generate('x'.repeat(most + 1))
      expect(await over.json()).toMatchObject({
        code: 'prompt_too_long',
        error: expect.stringContaining('Given: more than 1024'),
      })
      expect(seen).toEqual([])
      await generate('x'.repeat(most))
      expect(seen).toEqual([most])
    } finally {
      node.built.context.textEncoder = textEncoder
    }
  })

  test('is refused before millions of its ids are made text', async () => {
    const prompt = Array.from({ length: 1_000_000 }, () => 5)
    const reply = await node.post('/v1/completions', { model: 'demo-base', prompt, max_tokens: 1 })
    expect(reply.status).toBe(400)
    expect(await reply.json()).toMatchObject({
      error: { code: 'context_length_exceeded', message: expect.stringContaining('resulted in 1000000 tokens') },
    })
  })
})
