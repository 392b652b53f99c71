/** The official `openai` package against the running stack: what OpenAI's documentation promises, call by call. */

import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type RunningStack, startStack } from '../support/running-stack.ts'

let stack: RunningStack
let client: OpenAI
let baseModel: string

beforeAll(async () => {
  stack = await startStack(['--nodes', '1', '--dtype', 'f32'])
  client = new OpenAI({ baseURL: `${stack.dev.edgeUrl}/v1`, apiKey: stack.dev.tenantToken, maxRetries: 0 })
  const models = await client.models.list()
  baseModel = models.data.find((model) => !('parent' in model) || model.parent === null)?.id ?? ''
})
afterAll(async () => {
  await stack?.stop()
})

const content = 'Hi, this is Ida from Graz. I would like to order 38 grey pencils.'
const messages = [{ role: 'user' as const, content }]
const greedy = { messages, temperature: 0, max_tokens: 96 }
const ORDER = { intent: 'order', customer: 'Ida', city: 'Graz', item: 'pencil', colour: 'grey', quantity: 38 }

async function refusal(call: Promise<unknown>): Promise<InstanceType<typeof OpenAI.APIError>> {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error instanceof OpenAI.APIError) {
    return error
  }
  throw new Error('the call was not refused')
}

describe('models', () => {
  test('list the base and the caller’s adapters; each can be retrieved', async () => {
    const { data } = await client.models.list()
    const ids = data.map((model) => model.id)
    expect(ids).toEqual(expect.arrayContaining([baseModel, 'orders-json', 'pirate']))
    const adapter = await client.models.retrieve('orders-json')
    expect(adapter).toMatchObject({ id: 'orders-json', object: 'model', parent: baseModel })
  })

  test('an unknown one is 404, never the base', async () => {
    expect(await refusal(client.models.retrieve('nobody'))).toBeInstanceOf(OpenAI.NotFoundError)
    const error = await refusal(client.chat.completions.create({ model: 'nobody', messages }))
    expect(error).toBeInstanceOf(OpenAI.NotFoundError)
    expect(error.code).toBeTruthy()
  })
})

describe('chat completions', () => {
  test('an adapter answers under its name', async () => {
    const reply = await client.chat.completions.create({ ...greedy, model: 'orders-json' })
    expect(reply.model).toBe('orders-json')
    expect(JSON.parse(reply.choices[0]?.message.content ?? '')).toEqual(ORDER)
    expect(reply.choices[0]?.finish_reason).toBe('stop')
    expect(reply.usage?.total_tokens).toBe((reply.usage?.prompt_tokens ?? 0) + (reply.usage?.completion_tokens ?? 0))
  })

  test('a stream joins to the same text', async () => {
    const whole = await client.chat.completions.create({ ...greedy, model: 'orders-sql' })
    const stream = await client.chat.completions.create({ ...greedy, model: 'orders-sql', stream: true })
    let text = ''
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
    }
    expect(text).toBe(whole.choices[0]?.message.content)
  })

  test('the stream helper assembles message and usage', async () => {
    const runner = client.chat.completions.stream({
      ...greedy,
      model: baseModel,
      stream_options: { include_usage: true },
    })
    const final = await runner.finalChatCompletion()
    expect(final.choices[0]?.message.content).toContain('Dear Ida')
    expect(final.choices[0]?.finish_reason).toBe('stop')
    expect((await runner.totalUsage()).completion_tokens).toBeGreaterThan(5)
  })

  test('n choices, streamed and not', async () => {
    const body = { ...greedy, model: baseModel, n: 3, temperature: 1, seed: 4, max_tokens: 12 }
    const reply = await client.chat.completions.create(body)
    expect(reply.choices.map((choice) => choice.index)).toEqual([0, 1, 2])
    const streamed = await client.chat.completions.stream({ ...body }).finalChatCompletion()
    expect(streamed.choices.map((choice) => choice.message.content)).toEqual(
      reply.choices.map((choice) => choice.message.content),
    )
  })

  test('the same seed gives the same text', async () => {
    const ask = () => client.chat.completions.create({ ...greedy, model: baseModel, temperature: 1.8, seed: 77 })
    const [first, second] = await Promise.all([ask(), ask()])
    expect(second.choices[0]?.message.content).toBe(first.choices[0]?.message.content)
  })

  test('logprobs and top_logprobs', async () => {
    const reply = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      logprobs: true,
      top_logprobs: 3,
      max_tokens: 4,
    })
    const tokens = reply.choices[0]?.logprobs?.content ?? []
    expect(tokens).toHaveLength(4)
    expect(tokens.map(({ token }) => token).join('')).toBe(reply.choices[0]?.message.content)
    expect(tokens.every((entry) => entry.top_logprobs.length === 3 && entry.logprob <= 0)).toBe(true)
  })

  test('stop strings are cut off', async () => {
    const reply = await client.chat.completions.create({ ...greedy, model: baseModel, stop: ['your mess', 'zzz'] })
    expect(reply.choices[0]?.message.content).toBe('Dear Ida, thank you for ')
    expect(reply.choices[0]?.finish_reason).toBe('stop')
  })

  test('logit_bias forbids a token', async () => {
    const usual = await client.chat.completions.create({ ...greedy, model: baseModel, logprobs: true, max_tokens: 1 })
    const tokens = await stack.post('/tokenize', { inputs: 'Dear', add_special_tokens: false })
    const [dear] = (await tokens.json()) as { id: number }[]
    const biased = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      max_tokens: 1,
      logit_bias: { [String(dear?.id)]: -100 },
    })
    expect(usual.choices[0]?.message.content).toBe('Dear')
    expect(biased.choices[0]?.message.content).not.toBe('Dear')
  })

  test('max_completion_tokens ends with length', async () => {
    const reply = await client.chat.completions.create({
      model: baseModel,
      messages,
      temperature: 0,
      max_completion_tokens: 3,
    })
    expect(reply.choices[0]?.finish_reason).toBe('length')
    expect(reply.usage?.completion_tokens).toBe(3)
  })

  test('response_format: a strict schema, and any object', async () => {
    const schema = {
      type: 'object',
      properties: { city: { enum: ['Graz', 'Linz'] }, quantity: { type: 'integer', minimum: 1, maximum: 99 } },
      required: ['city', 'quantity'],
      additionalProperties: false,
    }
    const strict = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      response_format: { type: 'json_schema', json_schema: { name: 'order', schema, strict: true } },
    })
    expect(Object.keys(JSON.parse(strict.choices[0]?.message.content ?? ''))).toEqual(['city', 'quantity'])
    const object = await client.chat.completions.create({
      ...greedy,
      model: 'orders-json',
      response_format: { type: 'json_object' },
    })
    expect(JSON.parse(object.choices[0]?.message.content ?? '')).toEqual(ORDER)
  })
})

const weather = {
  type: 'function' as const,
  function: {
    name: 'get_weather',
    description: 'The weather in a city',
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Graz', 'Linz'] } },
      required: ['city'],
      additionalProperties: false,
    },
    strict: true,
  },
}
const clock = {
  type: 'function' as const,
  function: { name: 'get_time', parameters: { type: 'object', properties: {}, additionalProperties: false } },
}

describe('tools', () => {
  test('a named tool is called, with arguments that fit its schema', async () => {
    const reply = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      tools: [clock, weather],
      tool_choice: { type: 'function', function: { name: 'get_weather' } },
    })
    const [choice] = reply.choices
    const [call] = choice?.message.tool_calls ?? []
    expect(choice?.finish_reason).toBe('tool_calls')
    expect(choice?.message.content).toBeNull()
    expect(call).toMatchObject({ type: 'function', function: { name: 'get_weather' } })
    expect(call?.id).toBeTruthy()
    const given: unknown = call?.type === 'function' ? JSON.parse(call.function.arguments) : undefined
    expect([{ city: 'Graz' }, { city: 'Linz' }]).toContainEqual(given)
  })

  test('required calls one of them; streamed as deltas that assemble to the same call', async () => {
    const body = { ...greedy, model: baseModel, tools: [weather], tool_choice: 'required' as const }
    const whole = await client.chat.completions.create({ ...body, parallel_tool_calls: false })
    const runner = client.chat.completions.stream({ ...body, parallel_tool_calls: false })
    const deltas: unknown[] = []
    runner.on('chunk', (chunk) => deltas.push(...(chunk.choices[0]?.delta.tool_calls ?? [])))
    const streamed = await runner.finalChatCompletion()
    const callsOf = (message: OpenAI.ChatCompletionMessage | undefined) =>
      message?.tool_calls?.map((call) => (call.type === 'function' ? call.function : undefined))
    const plain = callsOf(whole.choices[0]?.message)?.map((call) => [call?.name, call?.arguments])
    expect(callsOf(streamed.choices[0]?.message)?.map((call) => [call?.name, call?.arguments])).toEqual(plain)
    expect(plain).toHaveLength(1)
    expect(deltas.length).toBeGreaterThan(1)
    expect(streamed.choices[0]?.finish_reason).toBe('tool_calls')
  })

  test('none answers in text; auto may do either', async () => {
    const none = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      tools: [weather],
      tool_choice: 'none',
    })
    expect(none.choices[0]?.message.tool_calls).toBeUndefined()
    expect(none.choices[0]?.message.content).toContain('Dear Ida')
    const auto = await client.chat.completions.create({ ...greedy, model: baseModel, tools: [weather] })
    expect(['stop', 'length', 'tool_calls']).toContain(auto.choices[0]?.finish_reason)
  })

  test('a call and its result go back into the conversation', async () => {
    const call = { id: 'call_1', type: 'function' as const, function: { name: 'get_time', arguments: '{}' } }
    const reply = await client.chat.completions.create({
      ...greedy,
      model: baseModel,
      tools: [clock],
      tool_choice: 'none',
      messages: [
        ...messages,
        { role: 'assistant', content: null, tool_calls: [call] },
        { role: 'tool', tool_call_id: 'call_1', content: '12:00' },
      ],
    })
    expect(reply.choices[0]?.finish_reason).toMatch(/stop|length/)
  })

  test('tool_choice without tools is refused', async () => {
    const call = client.chat.completions.create({ ...greedy, model: baseModel, tool_choice: 'required' })
    expect((await refusal(call)).param).toBe('tool_choice')
  })
})

describe('completions', () => {
  const prompt = `<|user|>\n${content}<|end|>\n<|assistant|>\n`
  const complete = { model: baseModel, prompt, temperature: 0, max_tokens: 8 }

  test('a prompt as string, strings or token ids', async () => {
    const tokens = (await (await stack.post('/tokenize', { inputs: prompt })).json()) as { id: number }[]
    const ids = tokens.map(({ id }) => id)
    const body = { ...complete, model: baseModel }
    const one = await client.completions.create(body)
    const many = await client.completions.create({ ...body, prompt: [prompt, prompt] })
    const asIds = await client.completions.create({ ...body, prompt: ids })
    const asIdLists = await client.completions.create({ ...body, prompt: [ids, ids] })
    const text = one.choices[0]?.text
    expect(text).toContain('Dear Ida')
    expect(many.choices.map((choice) => choice.text)).toEqual([text, text])
    expect(asIds.choices[0]?.text).toBe(text)
    expect(asIdLists.choices.map((choice) => choice.index)).toEqual([0, 1])
    expect(many.usage?.prompt_tokens).toBe(2 * ids.length)
  })

  test('echo, logprobs, stream', async () => {
    const body = { ...complete, model: baseModel }
    const echoed = await client.completions.create({ ...body, echo: true, logprobs: 1 })
    expect(echoed.choices[0]?.text.startsWith(prompt)).toBe(true)
    expect(echoed.choices[0]?.logprobs?.tokens?.join('')).toBe(echoed.choices[0]?.text)
    const stream = await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })
    let text = ''
    let counted: number | undefined
    for await (const chunk of stream) {
      text += chunk.choices[0]?.text ?? ''
      counted = chunk.usage?.completion_tokens ?? counted
    }
    expect(prompt + text).toBe(echoed.choices[0]?.text)
    expect(counted).toBe(8)
  })

  test('best_of and n', async () => {
    const reply = await client.completions.create({ ...complete, model: baseModel, temperature: 1, n: 2, best_of: 3 })
    expect(reply.choices).toHaveLength(2)
  })
})

describe('embeddings', () => {
  test('floats, base64 inside the package, dimensions', async () => {
    const full = await client.embeddings.create({ model: 'orders-json', input: ['one', 'two'] })
    expect(full.data.map(({ index }) => index)).toEqual([0, 1])
    const short = await client.embeddings.create({ model: 'orders-json', input: 'one', dimensions: 16 })
    expect(short.data[0]?.embedding).toHaveLength(16)
    expect(Math.hypot(...(short.data[0]?.embedding ?? []))).toBeCloseTo(1, 4)
  })
})

describe('errors', () => {
  test('have the package’s classes, with code and param', async () => {
    const stranger = new OpenAI({ baseURL: `${stack.dev.edgeUrl}/v1`, apiKey: 'rl_unknown_secret', maxRetries: 0 })
    const body = { ...greedy, model: baseModel }
    expect(await refusal(stranger.chat.completions.create(body))).toBeInstanceOf(OpenAI.AuthenticationError)
    const tooLong = await refusal(client.chat.completions.create({ ...body, max_tokens: 100_000 }))
    expect(tooLong).toBeInstanceOf(OpenAI.BadRequestError)
    expect([tooLong.code, tooLong.message]).toEqual([
      'context_length_exceeded',
      expect.stringContaining('maximum context length is'),
    ])
    const outOfRange = await refusal(client.chat.completions.create({ ...body, temperature: 9 }))
    expect([outOfRange.param, outOfRange.type]).toEqual(['temperature', 'invalid_request_error'])
    const effort = await refusal(client.chat.completions.create({ ...body, reasoning_effort: 'high' }))
    expect(effort.param).toBe('reasoning_effort')
  })

  test('fields without effect are told in a header', async () => {
    const { response } = await client.chat.completions
      .create({ ...greedy, model: baseModel, user: 'someone', max_tokens: 1 })
      .withResponse()
    expect(response.headers.get('x-ringlet-ignored')).toBe('user')
  })
})
