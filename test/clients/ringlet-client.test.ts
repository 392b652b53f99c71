import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { RingletApiError } from '../../shared/client/api-error.ts'
import { createRingletClient, type RingletClient } from '../../shared/client/ringlet-client.ts'
import { type RunningStack, startStack } from '../support/running-stack.ts'

let stack: RunningStack
let ringlet: RingletClient
beforeAll(async () => {
  stack = await startStack(['--nodes', '2', '--dtype', 'f32'])
  ringlet = createRingletClient({ baseUrl: stack.dev.edgeUrl, token: stack.dev.tenantToken })
})
afterAll(async () => {
  await stack?.stop()
})

const content = 'Hi, this is Ida from Graz. I would like to order 38 grey pencils.'
const messages = [{ role: 'user' as const, content }]
const inputs = `<|user|>\n${content}<|end|>\n<|assistant|>\n`
const parameters = { adapter_id: 'orders-json', max_new_tokens: 96 }

/** Lets so many bytes of each response through, and then breaks the connection. */
function breakAfter(bytes: number, connections: { count: number }): typeof fetch {
  return async (input, init) => {
    const response = await fetch(input, init)
    connections.count++
    let left = bytes
    const cut = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        controller.enqueue(chunk.subarray(0, left))
        left -= chunk.length
        if (left <= 0) {
          controller.error(new TypeError('terminated'))
        }
      },
    })
    return new Response(response.body?.pipeThrough(cut) ?? null, response)
  }
}

describe('the client', () => {
  test('generates, and streams the same', async () => {
    const whole = await ringlet.generate({ inputs, parameters })
    expect(JSON.parse(whole.generated_text)).toMatchObject({ city: 'Graz', quantity: 38 })
    let last: string | null = null
    for await (const event of ringlet.generateStream({ inputs, parameters })) {
      last = event.generated_text
    }
    expect(last).toBe(whole.generated_text)
  })

  test('chats, completes, embeds, tokenises and lists', async () => {
    const chat = await ringlet.chat({ model: 'pirate', messages, temperature: 0, max_tokens: 60 })
    let streamed = ''
    for await (const chunk of ringlet.chatStream({ model: 'pirate', messages, temperature: 0, max_tokens: 60 })) {
      streamed += chunk.choices[0]?.delta.content ?? ''
    }
    expect(streamed).toBe(chat.choices[0]?.message.content)
    const { data } = await ringlet.models()
    const completion = await ringlet.complete({ model: 'pirate', prompt: inputs, temperature: 0, max_tokens: 4 })
    expect(completion.usage.completion_tokens).toBe(4)
    expect((await ringlet.embed({ inputs })).embeddings.length).toBeGreaterThan(100)
    expect((await ringlet.embeddings({ model: 'pirate', input: inputs })).data).toHaveLength(1)
    expect((await ringlet.tokenize('one two')).length).toBeGreaterThan(1)
    expect(data.map(({ id }) => id)).toContain('pirate')
    expect(await ringlet.model('pirate')).toMatchObject({ id: 'pirate', parent: data[0]?.id })
  })

  test('throws the code, the field and the request id', async () => {
    const refused = ringlet.generate({ inputs, parameters: { top_p: 7 } }, { requestId: 'my-request' })
    await expect(refused).rejects.toThrow(RingletApiError)
    await expect(refused).rejects.toMatchObject({
      status: 422,
      code: 'field_invalid',
      param: 'parameters.top_p',
      requestId: 'my-request',
    })
    const stream = ringlet.chatStream({ model: 'nobody', messages })
    await expect(stream.next()).rejects.toMatchObject({ status: 404 })
  })

  test('takes a broken stream up again, without a gap or a repetition', async () => {
    const request = { model: 'pirate', messages, temperature: 1.3, seed: 5, max_tokens: 60 }
    const whole = await ringlet.chat(request)
    const connections = { count: 0 }
    const { edgeUrl, tenantToken } = stack.dev
    const shaky = createRingletClient({
      baseUrl: edgeUrl,
      token: tenantToken,
      fetch: breakAfter(5000, connections),
      maxResumes: 12,
    })
    let text = ''
    for await (const chunk of shaky.chatStream(request)) {
      text += chunk.choices[0]?.delta.content ?? ''
    }
    expect(connections.count).toBeGreaterThan(2)
    expect(text).toBe(whole.choices[0]?.message.content)
  })

  test('gives up after its number of resumes', async () => {
    const { edgeUrl, tenantToken } = stack.dev
    const options = { baseUrl: edgeUrl, token: tenantToken, fetch: breakAfter(300, { count: 0 }), maxResumes: 2 }
    const stream = createRingletClient(options).chatStream({ model: 'pirate', messages, max_tokens: 60 })
    await expect(
      (async () => {
        for await (const _chunk of stream) {
          // Read to its end.
        }
      })(),
    ).rejects.toThrow('terminated')
  })

  test('tells the progress of a load', async () => {
    const phases: string[] = []
    const request = { inputs, parameters: { ...parameters, adapter_id: 'redact' } }
    for await (const _event of ringlet.generateStream(request, { onProgress: ({ phase }) => phases.push(phase) })) {
      // Read to its end.
    }
    expect(phases).toContain('queued')
  })

  test('an abort ends the stream', async () => {
    const leaving = new AbortController()
    const request = { model: 'pirate', messages, max_tokens: 500, ignore_eos_token: true }
    const read = async () => {
      for await (const _chunk of ringlet.chatStream(request, { signal: leaving.signal })) {
        leaving.abort()
      }
    }
    await expect(read()).rejects.toThrow(/abort/i)
  })
})
