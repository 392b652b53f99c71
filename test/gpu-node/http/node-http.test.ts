import { readFile } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createApp } from '../../../gpu-node/http/app.ts'
import type { AdapterSelection } from '../../../shared/adapter-ref.ts'
import {
  loraxEmbedReplySchema,
  loraxErrorSchema,
  loraxReplySchema,
  loraxTokenizeReplySchema,
} from '../../../shared/api/lorax-reply.ts'
import {
  chatCompletionSchema,
  completionSchema,
  embeddingsSchema,
  openAiErrorSchema,
} from '../../../shared/api/openai-reply.ts'
import { mintTicket, TICKET_HEADER } from '../../../shared/ticket.ts'
import { adapterNamed, type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { testTicket, ticketHeaders } from '../../support/mint-ticket.ts'

const golden = JSON.parse(await readFile('models/demo/golden.json', 'utf8')) as {
  messages: string[]
  prompts: string[]
  greedy_ids: Record<string, number[][]>
  greedy_text: Record<string, string[]>
}
const prompt = golden.prompts[0] ?? ''
const message = golden.messages[0] ?? ''
const baseText = golden.greedy_text.base?.[0] ?? ''
const baseIds = golden.greedy_ids.base?.[0] ?? []
const inputs = (parameters: object = {}) => ({ inputs: prompt, parameters: { max_new_tokens: 100, ...parameters } })
const chat = (fields: object = {}) => ({
  model: 'demo-base',
  messages: [{ role: 'user', content: message }],
  temperature: 0,
  max_tokens: 100,
  ...fields,
})

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(async () => {
  await node.close()
})

async function read<Schema extends z.ZodType>(
  schema: Schema,
  response: Response | Promise<Response>,
  status = 200,
): Promise<z.output<Schema>> {
  const settled = await response
  const body: unknown = await settled.json()
  expect(settled.status, JSON.stringify(body).slice(0, 500)).toBe(status)
  return schema.parse(body)
}
const generated = (response: Promise<Response>) => read(loraxReplySchema, response)
const detailsOf = async (response: Promise<Response>) => {
  const { details } = await generated(response)
  return details ?? expect.fail('no details')
}
const chatted = (response: Promise<Response>) => read(chatCompletionSchema, response)
const refused = (response: Promise<Response>, status: number) => read(loraxErrorSchema, response, status)
const refusalOf = async (response: Promise<Response>) => (await response).json() as Promise<{ error: unknown }>
/** `redact` has half of `pirate`'s rank. */
const unlikeRanks: AdapterSelection = {
  kind: 'merge',
  strategy: 'linear',
  parts: ['pirate', 'redact'].map((id) => ({ ref: { source: 'local', id }, weight: 1 })),
}
const badFormat = { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nonsense' } } }
const listingSchema = z.looseObject({ digest: z.string(), pinned: z.boolean(), tier: z.string(), rank: z.int() })

describe('tickets', () => {
  test('no route but /health answers without one', async () => {
    const routes = createApp(node.built.context).routes.filter(({ method }) => method !== 'ALL')
    expect(routes.length).toBeGreaterThan(15)
    for (const { method, path } of routes) {
      const response = await fetch(node.url + path, { method })
      expect([path, response.status]).toEqual([path, path === '/health' ? 200 : 401])
    }
  })

  test('one serves once', async () => {
    const headers = await ticketHeaders()
    const call = () => fetch(`${node.url}/tokenize`, { method: 'POST', headers, body: '{"inputs":"a"}' })
    expect((await call()).status).toBe(200)
    expect((await refused(call(), 401)).code).toBe('ticket_replayed')
  })

  test.each([
    [{ nodeId: 'another' }, 'ticket_wrong_node'],
    [{ expiresAt: Date.now() - 1 }, 'ticket_expired'],
    [{ expiresAt: Date.now() + 3_600_000 }, 'ticket_expired'],
    [{ action: 'info' as const }, 'ticket_invalid'],
  ])('%j is refused as %s', async (fields, code) => {
    expect((await refused(node.post('/generate', inputs(), fields), 401)).code).toBe(code)
  })

  test('one signed with another key is refused', async () => {
    const forged = await mintTicket(testTicket(), {
      keys: [{ id: 'test', secret: 'another secret of 32 characters!' }],
    })
    const headers = { 'content-type': 'application/json', [TICKET_HEADER]: forged }
    const response = fetch(`${node.url}/generate`, { method: 'POST', headers, body: '{}' })
    expect((await refused(response, 401)).code).toBe('ticket_invalid')
  })
})

describe('/generate', () => {
  test('answers the golden prompts with the golden texts, base and adapter', async () => {
    const base = await node.post('/generate', inputs())
    expect(await base.json()).toEqual({ generated_text: baseText })
    expect(base.headers.get('x-adapter-id')).toBeNull()
    const adapted = await node.post('/generate', inputs(), { adapter: adapterNamed('orders-json') })
    expect(await adapted.json()).toEqual({ generated_text: golden.greedy_text['orders-json']?.[0] })
    expect(adapted.headers.get('x-adapter-id')).toBe('orders-json')
    expect(adapted.headers.get('x-adapter-source')).toBe('local')
    expect(adapted.headers.get('x-adapter-digest')).toMatch(/^[0-9a-f]{64}$/)
    expect(adapted.headers.get('server-timing')).toMatch(/queue;dur=.*load;dur=.*prefill;dur=/)
  })

  test('details name every token, the finish and the counts', async () => {
    const details = await detailsOf(node.post('/generate', inputs({ details: true })))
    expect(details).toMatchObject({
      finish_reason: 'eos_token',
      generated_tokens: baseIds.length,
      prompt_tokens: 31,
      seed: null,
      prefill: [],
    })
    expect(details.tokens.map((token) => token.id)).toEqual(baseIds)
    expect(details.tokens.at(-1)).toMatchObject({ text: '<|end|>', special: true })
  })

  test('prompt details have the prompt’s tokens; the first has no logprob', async () => {
    const details = await detailsOf(node.post('/generate', inputs({ decoder_input_details: true, max_new_tokens: 1 })))
    expect(details.prefill.map((token) => token.text).join('')).toBe(prompt)
    expect(details.prefill[0]?.logprob).toBeNull()
    expect(details.prefill[5]?.logprob).toBeLessThan(0)
  })

  test('best_of returns the likeliest, and the other beside it', async () => {
    const details = await detailsOf(
      node.post('/generate', inputs({ best_of: 2, do_sample: true, temperature: 1.5, details: true })),
    )
    const mean = (tokens: { logprob: number }[]) =>
      tokens.reduce((sum, token) => sum + token.logprob, 0) / tokens.length
    expect(details.best_of_sequences).toHaveLength(1)
    expect(mean(details.tokens)).toBeGreaterThanOrEqual(mean(details.best_of_sequences?.[0]?.tokens ?? []))
  })

  test('alternatives come likeliest first', async () => {
    const details = await detailsOf(
      node.post('/generate', inputs({ return_k_alternatives: 3, details: true, max_new_tokens: 2 })),
    )
    const [first] = details.tokens
    expect(first?.alternative_tokens).toHaveLength(3)
    expect(first?.alternative_tokens?.[0]?.id).toBe(first?.id)
  })

  test('a stop string ends it and stays in the text', async () => {
    const reply = await generated(node.post('/generate', inputs({ stop: ['thank you for yo'], details: true })))
    expect(reply.generated_text).toBe('Dear Fiona, thank you for yo')
    expect(reply.details?.finish_reason).toBe('stop_sequence')
  })

  test('return_full_text puts the prompt in front', async () => {
    const reply = await generated(node.post('/generate', inputs({ return_full_text: true })))
    expect(reply.generated_text).toBe(prompt + baseText)
  })

  test.each([
    [{ max_new_tokens: 300 }, '`inputs` tokens + `max_new_tokens` must be <= 256. Given: 31 `inputs` tokens and 300'],
    [{ truncate: 0 }, '`truncate` must be strictly positive and less than 255. Given: 0'],
  ])('%j is refused with the numbers', async (parameters, text) => {
    const body = await refused(node.post('/generate', inputs(parameters)), 422)
    expect(body.error).toContain(`Input validation error: ${text}`)
    expect(body.error_type).toBe('validation')
  })

  test('truncate keeps the end of a prompt that is too long', async () => {
    const long = { inputs: 'words '.repeat(400) + prompt, parameters: { truncate: 31, max_new_tokens: 100 } }
    expect((await generated(node.post('/generate', long))).generated_text).toBe(baseText)
    expect((await refused(node.post('/generate', { inputs: long.inputs }), 422)).code).toBe('prompt_too_long')
  })

  test('a prompt of megabytes is refused without being read to its end', async () => {
    const before = performance.now()
    const body = await refused(node.post('/generate', { inputs: 'words and more words '.repeat(300_000) }), 422)
    expect(body.code).toBe('prompt_too_long')
    expect(performance.now() - before).toBeLessThan(2_000)
  })

  test('a ticket’s limit lowers the length without an error', async () => {
    const details = await detailsOf(node.post('/generate', inputs({ details: true }), { limits: { maxNewTokens: 3 } }))
    expect(details).toMatchObject({ generated_tokens: 3, finish_reason: 'length' })
  })

  test('an adapter that is not there is 404 and never the base', async () => {
    const body = await refused(node.post('/generate', inputs(), { adapter: adapterNamed('nobody') }), 404)
    expect(body.code).toBe('adapter_not_found')
  })

  test.each([
    ['an adapter that is not there', {}, adapterNamed('nobody'), 'adapter_not_found', 'parameters.adapter_id'],
    ['a merge of unlike ranks', {}, unlikeRanks, 'merge_invalid', 'parameters.merged_adapters'],
    ['a bad schema', { response_format: badFormat }, undefined, 'grammar_invalid', 'parameters.response_format'],
    ['an unknown token', { logit_bias: { 5000: 1 } }, undefined, 'field_invalid', 'parameters.logit_bias'],
  ])('%s is refused in the field that names it', async (_what, parameters, adapter, code, param) => {
    const ticket = adapter === undefined ? {} : { adapter }
    expect(await refusalOf(node.post('/generate', inputs(parameters), ticket))).toMatchObject({ code, param })
  })

  test('the compatibility route answers with an array', async () => {
    expect(await read(z.array(loraxReplySchema), node.post('/', inputs()))).toEqual([{ generated_text: baseText }])
  })

  test.each([
    ['{"inputs":', {}, 400, 'body_malformed'],
    ['{"inputs":"x"}', { 'content-type': 'text/plain' }, 415, 'content_type_unsupported'],
    [JSON.stringify({ inputs: 'x'.repeat(9 * 2 ** 20) }), {}, 413, 'body_too_large'],
  ])('a bad body (%#) is refused', async (body, headers, status, code) => {
    const response = await node.post('/generate', body, {}, headers)
    expect([response.status, ((await response.json()) as { code: string }).code]).toEqual([status, code])
  })
})

describe('/v1/chat/completions', () => {
  test('answers as OpenAI does', async () => {
    const reply = await chatted(
      node.post('/v1/chat/completions', chat(), { requestId: 'r1', createdAt: 1_700_000_000 }),
    )
    expect(reply).toEqual({
      id: 'chatcmpl-r1',
      object: 'chat.completion',
      created: 1_700_000_000,
      model: 'demo-base',
      system_fingerprint: expect.any(String),
      choices: [
        {
          index: 0,
          message: { role: 'assistant', content: baseText, refusal: null },
          logprobs: null,
          finish_reason: 'stop',
        },
      ],
      usage: { prompt_tokens: 31, completion_tokens: baseIds.length, total_tokens: 31 + baseIds.length },
    })
  })

  test('cuts a stop string off', async () => {
    const reply = await chatted(node.post('/v1/chat/completions', chat({ stop: ['thank you for yo'] })))
    expect(reply.choices[0]).toMatchObject({ message: { content: 'Dear Fiona, ' }, finish_reason: 'stop' })
  })

  test('length is told', async () => {
    const reply = await chatted(node.post('/v1/chat/completions', chat({ max_tokens: 2 })))
    expect(reply.choices[0]?.finish_reason).toBe('length')
    expect(reply.usage.completion_tokens).toBe(2)
  })

  test('n choices differ by their seeds, and the same seed gives the same ones', async () => {
    const messages = [{ role: 'user', content: 'Where is it' }]
    const ask = () => chatted(node.post('/v1/chat/completions', chat({ messages, n: 5, temperature: 2, seed: 5 })))
    const [first, second] = await Promise.all([ask(), ask()])
    const texts = (reply: z.infer<typeof chatCompletionSchema>) => reply.choices.map((choice) => choice.message.content)
    expect(new Set(texts(first)).size).toBeGreaterThan(1)
    expect(texts(second)).toEqual(texts(first))
  })

  test('logprobs have the bytes of each token', async () => {
    const reply = await chatted(
      node.post('/v1/chat/completions', chat({ logprobs: true, top_logprobs: 2, max_tokens: 3 })),
    )
    const content = reply.choices[0]?.logprobs?.content ?? []
    expect(content).toHaveLength(3)
    expect(Buffer.from(content.flatMap((entry) => entry.bytes ?? [])).toString()).toBe('Dear Fiona')
    expect(content[0]?.top_logprobs).toHaveLength(2)
  })

  test.each([
    ['a stop string', { stop: ['k you for yo'] }],
    ['the end token', {}],
  ])('logprobs are those of the content: without %s', async (_ended, fields) => {
    const reply = await chatted(node.post('/v1/chat/completions', chat({ logprobs: true, ...fields })))
    const [choice] = reply.choices
    const tokens = choice?.logprobs?.content?.map(({ token }) => token) ?? []
    expect(choice?.finish_reason).toBe('stop')
    // A token that the cut goes through is there whole.
    expect(tokens.slice(0, -1).join('').length).toBeLessThan(choice?.message.content?.length ?? 0)
    expect(tokens.join('').startsWith(choice?.message.content ?? '?')).toBe(true)
    expect(tokens).not.toContain('<|end|>')
  })

  test('JSON of a schema is what comes, whatever the model would say', async () => {
    const schema = {
      type: 'object',
      properties: { city: { enum: ['Graz', 'Linz'] }, count: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['city', 'count'],
      additionalProperties: false,
    }
    const format = { type: 'json_schema', json_schema: { name: 'order', schema, strict: true } }
    const reply = await chatted(node.post('/v1/chat/completions', chat({ response_format: format })))
    const value = JSON.parse(reply.choices[0]?.message.content ?? '')
    expect(['Graz', 'Linz']).toContain(value.city)
    expect(value.count).toBeGreaterThanOrEqual(1)
    expect(reply.choices[0]?.finish_reason).toBe('stop')
  })

  test('an invalid schema is its caller’s error alone', async () => {
    const format = { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nonsense' } } }
    const [invalid, served] = await Promise.all([
      node.post('/v1/chat/completions', chat({ response_format: format })),
      node.post('/v1/chat/completions', chat()),
    ])
    expect([invalid.status, served.status]).toEqual([400, 200])
    expect((await read(openAiErrorSchema, invalid, 400)).error.code).toBe('grammar_invalid')
  })

  test('errors have OpenAI’s shape', async () => {
    const reply = await read(openAiErrorSchema, node.post('/v1/chat/completions', chat({ top_p: 2 })), 400)
    expect(reply.error).toMatchObject({ type: 'invalid_request_error', code: 'field_invalid', param: 'top_p' })
  })

  test.each([
    ['an adapter that is not there', {}, adapterNamed('nobody'), 'model_not_found', 'model'],
    ['a merge of unlike ranks', {}, unlikeRanks, 'merge_invalid', 'merged_adapters'],
    ['a bad schema', { response_format: badFormat }, undefined, 'grammar_invalid', 'response_format'],
    ['an unknown token', { logit_bias: { 5000: 1 } }, undefined, 'field_invalid', 'logit_bias'],
  ])('%s is refused in the field that names it', async (_what, fields, adapter, code, param) => {
    const ticket = adapter === undefined ? {} : { adapter }
    const { error } = await refusalOf(node.post('/v1/chat/completions', chat(fields), ticket))
    expect(error).toMatchObject({ code, param })
  })

  test('fields without effect are told', async () => {
    const response = await node.post('/v1/chat/completions', chat({ user: 'u', max_tokens: 1 }))
    expect(response.headers.get('x-ringlet-ignored')).toBe('user')
  })
})

describe('/v1/completions', () => {
  const complete = (fields: object) =>
    read(
      completionSchema,
      node.post('/v1/completions', { model: 'demo-base', prompt, temperature: 0, max_tokens: 4, ...fields }),
    )

  test('takes several prompts, as text or as ids', async () => {
    const ids = node.built.context.tokenizer.encode(prompt, true)
    const reply = await complete({ prompt: [ids, [...ids, ...baseIds.slice(0, 2)]] })
    const text = node.built.context.tokenizer.decode(baseIds.slice(0, 4), true)
    expect(reply.choices.map((choice) => choice.index)).toEqual([0, 1])
    expect(reply.choices[0]?.text).toBe(text)
    expect(reply.usage).toEqual({ prompt_tokens: 31 + 33, completion_tokens: 8, total_tokens: 31 + 33 + 8 })
  })

  test('echo with logprobs scores the prompt, each token beside the likeliest', async () => {
    const { choices, usage } = await complete({ echo: true, logprobs: 2, max_tokens: 0 })
    const { tokens, token_logprobs, text_offset, top_logprobs } = choices[0]?.logprobs ?? expect.fail('no logprobs')
    expect(usage.completion_tokens).toBe(0)
    expect(top_logprobs?.[0]).toBeNull()
    for (const [i, top] of top_logprobs?.slice(1).entries() ?? []) {
      expect(top?.[tokens[i + 1] ?? '']).toBeCloseTo(token_logprobs[i + 1] ?? 0, 5)
      expect(Math.max(...Object.values(top ?? {}))).toBeGreaterThan((token_logprobs[i + 1] ?? 0) - 1e-5)
    }
    expect(choices[0]?.text).toBe(prompt)
    expect(tokens.join('')).toBe(prompt)
    expect(token_logprobs[0]).toBeNull()
    expect(text_offset.at(-1)).toBe(prompt.length - (tokens.at(-1) ?? '').length)
  })

  test('best_of returns the n likeliest', async () => {
    const reply = await complete({ best_of: 4, n: 2, temperature: 1.5, seed: 3, logprobs: 0 })
    const means = reply.choices.map(({ logprobs }) => {
      const list = logprobs?.token_logprobs ?? []
      return list.reduce<number>((sum, logprob) => sum + (logprob ?? 0), 0) / list.length
    })
    expect(means).toHaveLength(2)
    expect(means[0]).toBeGreaterThanOrEqual(means[1] ?? 0)
  })
})

describe('other routes', () => {
  test('embeddings: OpenAI’s shape, unit length, base64 the same numbers, adapters differ', async () => {
    const embed = (fields: object, adapter?: string) =>
      read(
        embeddingsSchema,
        node.post(
          '/v1/embeddings',
          { model: 'demo-base', input: ['hello there', prompt], ...fields },
          { action: 'embed', ...(adapter === undefined ? {} : { adapter: adapterNamed(adapter) }) },
        ),
      )
    const [plain, packed, adapted] = await Promise.all([
      embed({}),
      embed({ encoding_format: 'base64' }),
      embed({}, 'orders-json'),
    ])
    const vector = plain.data[1]?.embedding as number[]
    expect(vector).toHaveLength(192)
    expect(Math.hypot(...vector)).toBeCloseTo(1, 5)
    const bytes = Buffer.from(packed.data[1]?.embedding as string, 'base64')
    expect(bytes.readFloatLE(8)).toBeCloseTo(vector[2] ?? 0, 6)
    expect(adapted.data[1]?.embedding).not.toEqual(vector)
    expect(plain.usage.prompt_tokens).toBeGreaterThan(31)
  })

  test('embeddings of an adapter that is not there name the field', async () => {
    const missing = { action: 'embed' as const, adapter: adapterNamed('nobody') }
    const openAi = await refusalOf(node.post('/v1/embeddings', { model: 'nobody', input: 'x' }, missing))
    expect(openAi.error).toMatchObject({ code: 'model_not_found', param: 'model' })
    const lorax = await refusalOf(node.post('/embed', { inputs: 'x' }, missing))
    expect(lorax).toMatchObject({ code: 'adapter_not_found', param: 'parameters.adapter_id' })
  })

  test('LoRAX’s /embed and /tokenize', async () => {
    const { embeddings } = await read(
      loraxEmbedReplySchema,
      node.post('/embed', { inputs: 'hello' }, { action: 'embed' }),
    )
    expect(embeddings).toHaveLength(192)
    const tokens = await read(
      loraxTokenizeReplySchema,
      node.post('/tokenize', { inputs: 'Héllo wörld' }, { action: 'tokenize' }),
    )
    expect(tokens[0]).toEqual({ id: expect.any(Number), text: 'H', start: 0, stop: 1 })
    expect(tokens.at(-1)?.stop).toBe(11)
  })

  test('/classify is not served, and says so', async () => {
    const body = await refused(node.post('/classify', { inputs: 'x' }), 501)
    expect(body.code).toBe('not_supported')
  })

  test('/info has LoRAX’s fields, /metrics the engine’s rows', async () => {
    const info = await (await node.get('/info')).json()
    expect(info).toMatchObject({ model_id: 'demo-base', max_total_tokens: 256, max_input_length: 255, max_best_of: 2 })
    const metrics = await (await node.get('/metrics')).text()
    expect(metrics).toContain('ringlet_engine_rows 8')
    expect(metrics).toContain('ringlet_engine_free_rows 8')
    expect(metrics).toMatch(/ringlet_time_to_first_token_seconds_count\{adapter="base"\} [1-9]/)
  })

  test('adapters are listed, pinned, held against unloading, and unloaded', async () => {
    const admin = (path: string, body = {}) =>
      node.post(`/adapters/${path}`, body, { action: 'admin', adapter: adapterNamed('triage') })
    const pinned = await read(listingSchema, admin('pin'))
    expect(pinned).toMatchObject({ pinned: true, tier: 'engine', rank: 8 })
    expect((await refused(admin('unload'), 409)).code).toBe('conflict')
    expect(await read(listingSchema, admin('unpin'))).toMatchObject({ pinned: false })
    await read(listingSchema, admin('unload', { adapter: pinned.digest }))
    const { adapters } = await read(z.object({ adapters: z.array(listingSchema) }), node.get('/adapters'))
    expect(adapters.map((adapter) => adapter.digest)).not.toContain(pinned.digest)
  })
})
