import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { nodeTag } from '../../../shared/stream-resume.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'
import { answerStream, answerText, type StubNode } from '../stub-node.ts'

let world: EdgeWorld
let node: StubNode
let token: string
beforeAll(async () => {
  world = await startEdgeWorld()
  node = world.nodes[0]!
  token = (await world.createTenant({ name: 'caller' })).token.token
  await world.admin('PUT', '/admin/aliases/pirate', { source: 'local', id: 'pirate' })
})
afterAll(() => world.close())

describe('a request on its way to a node', () => {
  test('carries a ticket for this tenant, adapter and node, and the body as it came', async () => {
    const body = { inputs: 'Hello', parameters: { adapter_id: 'pirate', max_new_tokens: 5 } }
    const response = await world.post('/generate?x=1', token, body)
    expect(response.status).toBe(200)
    expect(await response.json()).toMatchObject({ generated_text: 'hello' })
    const served = node.served.at(-1)!
    expect(served).toMatchObject({
      path: '/generate?x=1',
      body: JSON.stringify(body),
      ticket: {
        action: 'generate',
        nodeId: 'node-0',
        adapter: { kind: 'single', ref: { source: 'local', id: 'pirate' } },
        cacheSalt: expect.stringMatching(/^[0-9a-f]{32}$/),
      },
    })
    expect(served.ticket.expiresAt - Date.now()).toBeLessThanOrEqual(60_000)
    expect(response.headers.get('x-ringlet-node')).toBe('node-0')
    expect(response.headers.get('server-timing')).toMatch(/^auth;dur=[\d.]+, .*queue;dur=0\.1$/)
  })

  test('the base is asked for by its name, or by naming no adapter on LoRAX routes; an empty model is none', async () => {
    await world.post('/generate', token, { inputs: 'x', parameters: { adapter_id: '' } })
    await world.post('/v1/chat/completions', token, {
      model: 'demo/base',
      messages: [{ role: 'user', content: 'x' }],
    })
    expect(node.served.slice(-2).map((one) => one.ticket.adapter)).toEqual(Array(2).fill({ kind: 'base' }))
    const served = node.served.length
    const response = await world.post('/v1/completions', token, { model: '', prompt: 'x' })
    expect(response.status).toBe(404)
    expect(await response.json()).toMatchObject({ error: { code: 'model_not_found', param: 'model' } })
    expect(node.served.length).toBe(served)
  })

  test.each([
    ['local:orders-json', { source: 'local', id: 'orders-json' }],
    ['LOCAL:orders-json', { source: 'local', id: 'orders-json' }],
    ['/srv/adapters/one', { source: 'local', id: '/srv/adapters/one' }, 'local'],
  ])('%s is taken literally', async (adapter_id, ref, adapter_source?: string) => {
    const parameters = { adapter_id, ...(adapter_source === undefined ? {} : { adapter_source }) }
    expect((await world.post('/generate', token, { inputs: 'x', parameters })).status).toBe(200)
    expect(node.served.at(-1)!.ticket.adapter).toEqual({ kind: 'single', ref })
  })

  test('a merge names each part, aliases among them', async () => {
    const merged_adapters = { ids: ['pirate', 'local:redact'], weights: [0.5, 2], merge_strategy: 'ties', density: 0.5 }
    const response = await world.post('/generate', token, { inputs: 'x', parameters: { merged_adapters } })
    expect(response.status).toBe(200)
    expect(node.served.at(-1)!.ticket.adapter).toEqual({
      kind: 'merge',
      strategy: 'ties',
      density: 0.5,
      parts: [
        { ref: { source: 'local', id: 'pirate' }, weight: 0.5 },
        { ref: { source: 'local', id: 'redact' }, weight: 2 },
      ],
    })
  })

  const ids = ['pirate', 'nobody']
  test.each([
    ['/generate', { parameters: { adapter_id: 'nobody' } }, 'adapter_not_found', 'parameters.adapter_id'],
    ['/generate', { parameters: { adapter_id: '../x' } }, 'field_invalid', 'parameters.adapter_id'],
    ['/generate', { parameters: { adapter_id: 'pbase:a/b/c' } }, 'field_invalid', 'parameters.adapter_id'],
    [
      '/generate',
      { parameters: { adapter_id: 'x', adapter_source: 'disk' } },
      'field_invalid',
      'parameters.adapter_source',
    ],
    [
      '/generate',
      { parameters: { merged_adapters: { ids, weights: [1, 1] } } },
      'adapter_not_found',
      'parameters.merged_adapters.ids[1]',
    ],
    [
      '/generate',
      { parameters: { merged_adapters: { ids, weights: [1, 1], sources: ['disk', null] } } },
      'field_invalid',
      'parameters.merged_adapters.sources[0]',
    ],
    ['/v1/completions', { model: 'nobody' }, 'model_not_found', 'model'],
    ['/v1/completions', { model: '../x' }, 'field_invalid', 'model'],
    ['/v1/completions', { model: 'x', adapter_source: 'disk' }, 'field_invalid', 'adapter_source'],
    [
      '/v1/completions',
      { model: 'demo/base', merged_adapters: { ids, weights: [1, 1] } },
      'model_not_found',
      'merged_adapters.ids[1]',
    ],
  ])('%s with %j is refused as %s in the field %s', async (path, fields, code, param) => {
    const response = await world.post(path, token, {
      ...(path === '/generate' ? { inputs: 'x' } : { prompt: 'x' }),
      ...fields,
    })
    const body = (await response.json()) as { error: unknown }
    expect(typeof body.error === 'object' ? body.error : body).toMatchObject({ code, param })
  })

  test('every tenant has its own salt, the same at each request', async () => {
    const other = (await world.createTenant({ name: 'other' })).token.token
    for (const asker of [token, token, other]) {
      await world.post('/generate', asker, { inputs: 'x' })
    }
    const [first, second, third] = node.served.slice(-3).map((one) => one.ticket.cacheSalt)
    expect(first).toBe(second)
    expect(third).not.toBe(first)
  })
})

describe('what does not resolve', () => {
  test.each([
    ['/generate', { inputs: 'x', parameters: { adapter_id: 'nobody' } }, 404, { code: 'adapter_not_found' }],
    [
      '/v1/completions',
      { model: 'gpt-4', prompt: 'x' },
      404,
      { error: { code: 'model_not_found', type: 'invalid_request_error', param: 'model' } },
    ],
    ['/generate', { inputs: 'x', parameters: { adapter_id: 'a/../b', adapter_source: 'local' } }, 422, {}],
    ['/generate', { inputs: 'x', parameters: { adapter_id: 'a', adapter_source: 'ftp' } }, 422, {}],
    ['/generate', { inputs: 'x', adapter_id: 'pirate' }, 422, { code: 'field_unknown' }],
    ['/generate', { inputs: 'x', parameters: { top_p: 2 } }, 422, { param: 'parameters.top_p' }],
    ['/v1/chat/completions', { model: 'demo/base' }, 400, { error: { param: 'messages' } }],
  ])('%s %j answers %i', async (path, body, status, expected) => {
    const before = node.served.length
    const response = await world.post(path, token, body)
    expect(response.status).toBe(status)
    expect(await response.json()).toMatchObject(expected)
    expect(node.served.length).toBe(before)
  })

  test('malformed JSON is 400, another content type 415, in the shape of the route', async () => {
    const send = (path: string, body: string, type: string) =>
      fetch(world.url + path, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': type },
        body,
      })
    const lorax = await send('/generate', '{"inputs": ', 'application/json')
    expect([lorax.status, await lorax.json()]).toMatchObject([
      400,
      { code: 'body_malformed', error_type: 'validation' },
    ])
    const openai = await send('/v1/completions', 'nope', 'application/json')
    expect([openai.status, await openai.json()]).toMatchObject([400, { error: { code: 'body_malformed' } }])
    const form = await send('/generate', 'inputs=x', 'application/x-www-form-urlencoded')
    expect(form.status).toBe(415)
  })

  test('a compressed body is 415 with what would do: nothing is unpacked behind the cap', async () => {
    const packed = await fetch(`${world.url}/generate`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', 'content-encoding': 'gzip' },
      body: gzipSync(JSON.stringify({ inputs: 'x'.repeat(100_000) })),
    })
    expect([packed.status, packed.headers.get('accept-encoding')]).toEqual([415, 'identity'])
    expect(await packed.json()).toMatchObject({ code: 'content_type_unsupported' })
    const plain = await world.post('/generate', token, { inputs: 'x' }, { 'content-encoding': 'identity' })
    expect(plain.status).toBe(200)
  })
})

describe('the other routes', () => {
  test('/, /invocations, embeddings and tokenize reach the node with their own action', async () => {
    await world.post('/', token, { inputs: 'x', stream: false })
    await world.post('/invocations', token, { inputs: 'x' })
    await world.post('/embed', token, { inputs: 'x' })
    await world.post('/v1/embeddings', token, { model: 'demo/base', input: 'x' })
    await world.post('/tokenize', token, { inputs: 'x' })
    expect(node.served.slice(-5).map(({ path, ticket }) => [path, ticket.action])).toEqual([
      ['/', 'generate'],
      ['/invocations', 'generate'],
      ['/embed', 'embed'],
      ['/v1/embeddings', 'embed'],
      ['/tokenize', 'tokenize'],
    ])
  })

  test('/info is a node’s, /startup generates one token', async () => {
    node.answer = (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      response.end(JSON.stringify({ model_id: 'demo/base' }))
    }
    const info = await world.get('/info', token)
    expect([info.status, await info.json()]).toEqual([200, { model_id: 'demo/base' }])
    expect(node.served.at(-1)).toMatchObject({ method: 'GET', path: '/info', ticket: { action: 'info' } })
    node.answer = answerText('W')
    const startup = await world.get('/startup', token)
    expect([startup.status, await startup.text()]).toEqual([200, ''])
    expect(JSON.parse(node.served.at(-1)!.body)).toMatchObject({ parameters: { max_new_tokens: 1 } })
  })

  test('classification is answered with 501 and a code', async () => {
    for (const path of ['/classify', '/classify_batch']) {
      const response = await world.post(path, token, { inputs: 'x' })
      expect([response.status, await response.json()]).toMatchObject([501, { code: 'not_supported' }])
    }
  })

  test('/health is open, and LoRAX’s: 200 and nothing', async () => {
    for (const path of ['/', '/health', '/ping']) {
      const response = await fetch(world.url + path)
      expect([response.status, await response.text()]).toEqual([200, ''])
    }
  })

  test('/v1/models lists the base and the aliases with their roots', async () => {
    const response = await world.get('/v1/models', token)
    const { data } = (await response.json()) as { data: object[] }
    expect(data).toMatchObject([
      { id: 'demo/base', object: 'model', root: 'demo/base', parent: null },
      { id: 'pirate', root: 'local:pirate', parent: 'demo/base', max_model_len: 1024 },
    ])
    expect(await (await world.get('/v1/models/demo/base', token)).json()).toMatchObject({ id: 'demo/base' })
    expect(await (await world.get('/v1/models/pirate', token)).json()).toEqual(data[1])
    expect((await world.get('/v1/models/nobody', token)).status).toBe(404)
  })

  test('/v1/models tells the digest of what nodes hold', async () => {
    const listed = async () => {
      const { data } = (await (await world.get('/v1/models', token)).json()) as {
        data: { id: string; digest: string }[]
      }
      return Object.fromEntries(data.map(({ id, digest }) => [id, digest]))
    }
    expect(await listed()).toEqual({ 'demo/base': 'd1', pirate: null })
    const digest = '5d'.repeat(32)
    await world.report(node, [{ ref: 'local:pirate', digest, tier: 'disk' }])
    expect(await listed()).toEqual({ 'demo/base': 'd1', pirate: digest })
    await world.report(node)
  })

  test('/v1/models/{id} tells the digest, of an adapter where a node holds it', async () => {
    const digestOf = async (model: string) => {
      const card = (await (await world.get(`/v1/models/${model}`, token)).json()) as { digest: string | null }
      return card.digest
    }
    expect(await digestOf('demo/base')).toBe('d1')
    expect(await digestOf('pirate')).toBeNull()
    const before = node.answer
    node.answer = (_request, response) => {
      response.end(JSON.stringify({ adapters: [{ refs: ['local:pirate'], digest: 'abc' }] }))
    }
    expect(await digestOf('pirate')).toBe('abc')
    node.answer = before
  })
})

test('/v1/models/{id}: an adapter that only nodes can look for is there where its node finds it, and else 404', async () => {
  const before = node.answer
  const found = new Map([
    ['there', 200],
    ['missing', 404],
    ['busy', 503],
  ])
  node.answer = ({ path, ticket }, response) => {
    const id = ticket.adapter.kind === 'single' ? ticket.adapter.ref.id : ''
    response.writeHead(path === '/adapters' ? 200 : (found.get(id) ?? 500), { 'content-type': 'application/json' })
    response.end(JSON.stringify(path === '/adapters' ? { adapters: [] } : { digest: 'abc' }))
  }
  const missing = await world.get('/v1/models/local:missing', token)
  const unknown = await world.get('/v1/models/nobody', token)
  const bodies = [await missing.text(), await unknown.text()]
  expect([missing.status, bodies[0]]).toEqual([404, bodies[1]?.replace('nobody', 'local:missing')])
  const there = await world.get('/v1/models/local:there', token)
  expect([there.status, await there.json()]).toMatchObject([200, { root: 'local:there', digest: 'abc' }])
  expect((await world.get('/v1/models/local:busy', token)).status).toBe(200)
  node.answer = before
})

describe('a stream', () => {
  test('passes through event by event, and a client that leaves frees its node', async () => {
    const gates: (() => void)[] = []
    let sent = 0
    node.answer = answerStream(500, () => {
      sent++
      return new Promise<void>((open) => gates.push(open))
    })
    const leaving = new AbortController()
    const response = await fetch(`${world.url}/generate_stream`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ inputs: 'x' }),
      signal: leaving.signal,
    })
    expect(response.headers.get('content-type')).toBe('text/event-stream')
    const reader = response.body!.getReader()
    gates.shift()?.()
    const first = new TextDecoder().decode((await reader.read()).value)
    expect(first).toContain('"text":"t1"')
    expect(first).not.toContain('"text":"t2"')
    leaving.abort()
    // The runtime learns that the client has gone when it next writes to it, as at a model's pace of tokens.
    const pace = setInterval(() => gates.shift()?.(), 10)
    await node.served.at(-1)!.aborted
    clearInterval(pace)
    expect(sent).toBeLessThan(12)
  })

  test('goes on after the event that a client names, as the node that sent it remembers', async () => {
    const point = { seed: 5, createdAt: 1_700_000_000, delivered: { 0: [1, 2, 3, 4] }, digest: null }
    node.answer = (request, response) => {
      if (request.path === '/streams/resume') {
        response.writeHead(200, { 'content-type': 'application/json' })
        response.end(JSON.stringify(point))
        return
      }
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.end('id: 0:5:5\ndata: {"a":1}\n\nid: 0:6:6\ndata: {"a":2}\n\n: end\n\n')
    }
    const lastEventId = `0:4:4:${nodeTag(node.nodeId)}`
    const headers = { 'x-request-id': 'resumed-1', 'last-event-id': lastEventId }
    const response = await world.post('/generate_stream', token, { inputs: 'x' }, headers)
    expect(await response.text()).toContain('"a":2')
    const [asked, served] = node.served.slice(-2)
    expect(JSON.parse(asked!.body)).toMatchObject({ lastEventId })
    expect(served!.ticket).toMatchObject({ requestId: 'resumed-1', seed: 5, createdAt: 1_700_000_000 })
    expect(JSON.parse(Buffer.from(String(served!.headers['x-ringlet-delivered']), 'base64url').toString())).toEqual(
      point.delivered,
    )
  })
})
