import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  chatChunkSchema,
  chatCompletionSchema,
  openAiErrorSchema,
  type ToolCallDelta,
} from '../../../shared/api/openai-reply.ts'
import { toBase64Url } from '../../../shared/base64url.ts'
import { DELIVERED_HEADER } from '../../../shared/ticket.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { readEvents } from '../../support/sse-reader.ts'

let node: DemoNode

beforeAll(async () => {
  node = await startDemoNode(['--max-positions', '1024'])
})
afterAll(() => node.close())

const TOOLS = [
  {
    type: 'function',
    function: {
      name: 'find_order',
      description: 'Finds an order',
      parameters: {
        type: 'object',
        properties: {
          city: { enum: ['Oslo', 'Riga', 'Graz'] },
          quantity: { type: 'integer', minimum: 1, maximum: 9 },
        },
        required: ['city', 'quantity'],
        additionalProperties: false,
      },
    },
  },
  { type: 'function', function: { name: 'ping' } },
]

const chat = (fields: object = {}) => ({
  model: 'demo-base',
  messages: [{ role: 'user', content: 'Where is my order of two red mugs? Anna, Oslo' }],
  tools: TOOLS,
  temperature: 0,
  max_tokens: 200,
  ...fields,
})

const TICKET = { requestId: 'the-same-request' }

async function complete(fields: object) {
  const response = await node.post('/v1/chat/completions', chat(fields), TICKET)
  const body: unknown = await response.json()
  expect(response.status, JSON.stringify(body)).toBe(200)
  return chatCompletionSchema.parse(body).choices
}

async function refuse(fields: object) {
  const response = await node.post('/v1/chat/completions', chat(fields))
  return { status: response.status, ...openAiErrorSchema.parse(await response.json()).error }
}

interface Streamed {
  role: string
  content: string
  calls: { id: string; name: string; arguments: string }[]
  finish: string | null
  /** Token ids in the order of the events. */
  tokens: number[]
  /** How many events carried a piece of a call. */
  pieces: number
}

async function stream(fields: object, delivered: number[] = []): Promise<Streamed> {
  const header = toBase64Url(new TextEncoder().encode(JSON.stringify({ '0': delivered })))
  const headers: Record<string, string> = delivered.length === 0 ? {} : { [DELIVERED_HEADER]: header }
  const response = await node.post('/v1/chat/completions', chat({ ...fields, stream: true }), TICKET, headers)
  const streamed: Streamed = { role: '', content: '', calls: [], finish: null, tokens: [], pieces: 0 }
  for await (const { data, id } of readEvents(response)) {
    if (data === '[DONE]') {
      continue
    }
    streamed.tokens.push(...(id?.split(':')[2]?.split(',').map(Number) ?? []))
    const choice = chatChunkSchema.parse(JSON.parse(data)).choices[0]
    streamed.role += choice?.delta.role ?? ''
    streamed.content += choice?.delta.content ?? ''
    streamed.finish = choice?.finish_reason ?? streamed.finish
    for (const delta of choice?.delta.tool_calls ?? []) {
      streamed.pieces += 1
      addDelta(streamed, delta)
    }
  }
  return streamed
}

function addDelta({ calls }: Streamed, delta: ToolCallDelta): void {
  if (delta.id !== undefined) {
    calls.push({ id: delta.id, name: delta.function.name ?? '', arguments: '' })
  }
  const call = calls.at(-1)
  if (call !== undefined) {
    call.arguments += delta.function.arguments ?? ''
  }
}

describe('tool choice', () => {
  test('required: the answer is calls that fit their schemas', async () => {
    const [choice] = await complete({ tool_choice: 'required' })
    expect(choice).toMatchObject({ finish_reason: 'tool_calls', message: { content: null } })
    const calls = choice?.message.tool_calls ?? []
    expect(calls.length).toBeGreaterThan(0)
    expect(new Set(calls.map((call) => call.id)).size).toBe(calls.length)
    for (const call of calls) {
      const given: unknown = JSON.parse(call.function.arguments)
      if (call.function.name === 'find_order') {
        expect(given).toEqual({ city: expect.stringMatching(/^(Oslo|Riga|Graz)$/), quantity: expect.any(Number) })
      } else {
        expect([call.function.name, given]).toEqual(['ping', {}])
      }
    }
  })

  test('named: one call to that function', async () => {
    const named = { tool_choice: { type: 'function', function: { name: 'find_order' } } }
    const choices = await complete({ ...named, n: 2, temperature: 1.5, seed: 3 })
    expect(choices).toHaveLength(2)
    for (const { message } of choices) {
      expect(message.tool_calls?.map((call) => call.function.name)).toEqual(['find_order'])
    }
  })

  test('auto: a model that wants to talk talks; none: as if there were no tools', async () => {
    const [auto] = await complete({})
    expect(auto?.finish_reason).toBe('stop')
    expect(auto?.message.content?.length).toBeGreaterThan(5)
    expect(auto?.message).not.toHaveProperty('tool_calls')
    const [none] = await complete({ tool_choice: 'none' })
    const [without] = await complete({ tools: undefined })
    expect(none?.message).toEqual(without?.message)
  })

  test('without parallel calls there is one', async () => {
    const [choice] = await complete({ tool_choice: 'required', parallel_tool_calls: false, temperature: 1.2, seed: 5 })
    expect(choice?.message.tool_calls).toHaveLength(1)
  })
})

describe('a stream', () => {
  const named = { tool_choice: { type: 'function', function: { name: 'find_order' } } }

  test('brings the same call as the whole reply, in pieces', async () => {
    const [choice] = await complete(named)
    const streamed = await stream(named)
    expect(streamed).toMatchObject({ role: 'assistant', content: '', finish: 'tool_calls' })
    expect(streamed.calls).toEqual(
      choice?.message.tool_calls?.map(({ id, function: call }) => ({ id, name: call.name, arguments: call.arguments })),
    )
    expect(streamed.pieces).toBeGreaterThan(4)
  })

  test('continues in the middle of a call, wherever it broke off', async () => {
    const whole = await stream(named)
    for (let cut = 1; cut < whole.tokens.length; cut += 3) {
      const rest = await stream(named, whole.tokens.slice(0, cut))
      expect(rest.finish).toBe('tool_calls')
      // The client has what came with the first tokens; together it is the whole call.
      const text = rest.calls.map((call) => call.arguments).join('')
      expect(whole.calls[0]?.arguments.endsWith(text), `${cut}: ${text}`).toBe(true)
      expect(rest.calls.every((call) => call.id === whole.calls[0]?.id)).toBe(true)
    }
  })
})

test('calls and their results go back to the model', async () => {
  const messages = [
    { role: 'user', content: 'Where is my order?' },
    {
      role: 'assistant',
      content: null,
      tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'ping', arguments: '{}' } }],
    },
    { role: 'tool', tool_call_id: 'call_1', content: 'pong' },
  ]
  const [choice] = await complete({ messages })
  expect(choice?.message.content).toEqual(expect.any(String))
})

test('what a lenient schema asks and the grammar cannot enforce is told', async () => {
  const schema = { type: 'array', items: { type: 'integer', maximum: 5 }, uniqueItems: true, maxItems: 3 }
  const response_format = { type: 'json_schema', json_schema: { name: 'x', schema, strict: false } }
  const response = await node.post('/v1/chat/completions', chat({ tools: undefined, response_format }))
  expect(response.status).toBe(200)
  expect(response.headers.get('x-ringlet-ignored')).toContain('#/uniqueItems')
})

describe('refusals', () => {
  test('a tool whose schema cannot be enforced, when it must be', async () => {
    const parameters = { type: 'object', properties: { x: { type: 'string', not: {} } } }
    const tools = [{ type: 'function', function: { name: 'bad', strict: true, parameters } }]
    expect(await refuse({ tools })).toMatchObject({
      status: 400,
      code: 'tool_invalid',
      param: 'tools',
      message: expect.stringMatching(/function 'bad': #\/properties\/x\/not/),
    })
  })

  test('a response format that is no schema', async () => {
    const schema = { type: 'object', properties: { x: { type: 'strin' } } }
    const response_format = { type: 'json_schema', json_schema: { name: 'x', schema } }
    expect(await refuse({ tools: undefined, response_format })).toMatchObject({
      status: 400,
      code: 'grammar_invalid',
      message: expect.stringMatching(/#\/properties\/x: type 'strin' is unknown/),
    })
  })
})
