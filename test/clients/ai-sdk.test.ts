/** The Vercel AI SDK, through its OpenAI-compatible provider, against the running stack. */

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from 'ai'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { type RunningStack, startStack } from '../support/running-stack.ts'

let stack: RunningStack
let provider: ReturnType<typeof createOpenAICompatible>

beforeAll(async () => {
  stack = await startStack(['--nodes', '1', '--dtype', 'f32'])
  provider = createOpenAICompatible({
    name: 'ringlet',
    baseURL: `${stack.dev.edgeUrl}/v1`,
    apiKey: stack.dev.tenantToken,
    includeUsage: true,
    supportsStructuredOutputs: true,
  })
})
afterAll(async () => {
  await stack?.stop()
})

const prompt = 'Hi, this is Ida from Graz. I would like to order 38 grey pencils.'
const settings = { temperature: 0, maxOutputTokens: 96, maxRetries: 0 }
const order = z.object({ city: z.enum(['Graz', 'Linz']), quantity: z.number().int().min(1).max(99) })
const weather = tool({
  description: 'The weather in a city',
  inputSchema: z.object({ city: z.enum(['Graz', 'Linz']) }),
  execute: ({ city }) => `sunny in ${city}`,
})

describe('text', () => {
  test('generateText and streamText say the same', async () => {
    const model = provider('orders-sql')
    const whole = await generateText({ ...settings, model, prompt })
    expect(whole.text).toContain('SELECT')
    expect(whole.finishReason).toBe('stop')
    expect(whole.usage.outputTokens).toBeGreaterThan(5)
    const stream = streamText({ ...settings, model, prompt })
    let text = ''
    for await (const delta of stream.textStream) {
      text += delta
    }
    expect(text).toBe(whole.text)
    expect(await stream.usage).toEqual(whole.usage)
  })

  test('stop sequences, seed and length', async () => {
    const model = provider('pirate')
    const cut = await generateText({ ...settings, model, prompt, maxOutputTokens: 2 })
    expect(cut.finishReason).toBe('length')
    const ask = () => generateText({ ...settings, model, prompt, temperature: 1.5, seed: 3 })
    const [first, second] = await Promise.all([ask(), ask()])
    expect(second.text).toBe(first.text)
  })
})

describe('objects', () => {
  test('generateObject and streamObject fit the schema', async () => {
    const model = provider('orders-json')
    const { object } = await generateObject({ ...settings, model, prompt, schema: order })
    expect(order.parse(object)).toEqual(object)
    const stream = streamObject({ ...settings, model, prompt, schema: order })
    for await (const part of stream.partialObjectStream) {
      expect(part).toBeTypeOf('object')
    }
    expect(await stream.object).toEqual(object)
  })
})

describe('tools', () => {
  test('a required tool is called and its result goes back', async () => {
    const result = await generateText({
      ...settings,
      model: provider('orders-json'),
      prompt,
      tools: { weather },
      toolChoice: 'required',
      stopWhen: stepCountIs(1),
    })
    const [call] = result.toolCalls
    expect(call?.toolName).toBe('weather')
    expect(result.finishReason).toBe('tool-calls')
    expect(result.toolResults[0]?.output).toMatch(/^sunny in (Graz|Linz)$/)
  })

  test('streamed calls arrive as deltas and are run', async () => {
    const stream = streamText({
      ...settings,
      model: provider('orders-json'),
      prompt,
      tools: { weather },
      toolChoice: { type: 'tool', toolName: 'weather' },
      stopWhen: stepCountIs(1),
    })
    const kinds = new Set<string>()
    for await (const part of stream.fullStream) {
      kinds.add(part.type)
    }
    expect([...kinds]).toEqual(expect.arrayContaining(['tool-input-start', 'tool-input-delta', 'tool-call']))
    expect((await stream.toolCalls)[0]?.toolName).toBe('weather')
  })
})

describe('embeddings', () => {
  test('embedMany', async () => {
    const { embeddings, usage } = await embedMany({
      model: provider.textEmbeddingModel('orders-json'),
      values: ['one', 'two'],
    })
    expect(embeddings).toHaveLength(2)
    expect(usage.tokens).toBeGreaterThan(0)
  })
})

describe('errors', () => {
  test('an unknown model names itself', async () => {
    const call = generateText({ ...settings, model: provider('nobody'), prompt })
    await expect(call).rejects.toMatchObject({ statusCode: 404 })
  })
})
