import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

const PROMPT = 'the secret recipe of the house'
const ADAPTER_TOKEN = 'hf_thisMustNeverBeSeen'
const ORIGIN = 'https://console.example'
const BODY_CAP = 4096

let world: EdgeWorld
let token: string
beforeAll(async () => {
  world = await startEdgeWorld({
    vars: { RINGLET_CORS_ORIGINS: ORIGIN, RINGLET_MAX_BODY_BYTES: String(BODY_CAP), HF_HUB_OFFLINE: '1' },
  })
  token = (await world.createTenant({ name: 'caller' })).token.token
})
afterAll(() => world.close())

const lastServed = () => world.nodes[0]!.generated().at(-1)!

describe('the doors', () => {
  test('headers of Ringlet’s own die at the door, and the tenant token goes no further', async () => {
    const response = await world.post(
      '/generate',
      token,
      { inputs: PROMPT },
      {
        'x-ringlet-ticket': 'forged',
        'x-ringlet-adapter-tokens': 'forged',
        'x-ringlet-delivered': 'forged',
        'x-ringlet-anything': 'forged',
        'x-forwarded-for': '10.0.0.1',
        cookie: 'session=1',
      },
    )
    expect(response.status).toBe(200)
    const { headers } = lastServed()
    expect(Object.values(headers)).not.toContain('forged')
    expect(headers['x-ringlet-anything']).toBeUndefined()
    expect(headers.authorization).toBeUndefined()
    expect(headers.cookie).toBeUndefined()
    expect(JSON.stringify(headers)).not.toContain(token)
  })

  test('an adapter token reaches the node in its own header alone', async () => {
    const body = { inputs: PROMPT, parameters: { adapter_id: 'org/name' } }
    await world.post('/generate', token, body, { 'x-adapter-token': ADAPTER_TOKEN })
    const { headers, adapterTokens, ticket } = lastServed()
    expect(adapterTokens).toEqual({ 'hub:org/name': ADAPTER_TOKEN })
    expect(JSON.stringify(headers)).not.toContain(ADAPTER_TOKEN)
    expect(JSON.stringify(ticket)).not.toContain(ADAPTER_TOKEN)
  })

  test.each([
    ['declared', (size: number) => 'x'.repeat(size)],
    ['chunked', (size: number) => new Blob(['x'.repeat(size)]).stream()],
  ])('a body above the cap is 413, %s or not', async (_, toBody) => {
    const send = (size: number) =>
      fetch(`${world.url}/generate`, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: toBody(size),
        duplex: 'half',
      } as RequestInit)
    const within = await send(BODY_CAP)
    expect(within.status).toBe(400)
    const above = await send(BODY_CAP + 1)
    expect([above.status, await above.json()]).toMatchObject([413, { code: 'body_too_large' }])
  })

  test('a good request id is kept, another is replaced; every answer has one', async () => {
    const kept = await world.post('/generate', token, { inputs: 'x' }, { 'x-request-id': 'order-17' })
    expect(kept.headers.get('x-request-id')).toBe('order-17')
    expect(lastServed().headers['x-request-id']).toBe('order-17')
    const replaced = await world.post('/generate', token, { inputs: 'x' }, { 'x-request-id': 'a b{c}' })
    expect(replaced.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
    const refused = await fetch(`${world.url}/generate`, { method: 'POST' })
    expect(refused.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  })

  test('a trace goes on, or begins', async () => {
    const trace = '4bf92f3577b34da6a3ce929d0e0e4736'
    await world.post('/generate', token, { inputs: 'x' }, { traceparent: `00-${trace}-00f067aa0ba902b7-01` })
    expect(lastServed().headers.traceparent).toMatch(new RegExp(`^00-${trace}-(?!00f067aa0ba902b7)[0-9a-f]{16}-01$`))
    await world.post('/generate', token, { inputs: 'x' }, { traceparent: `00-${'0'.repeat(32)}-00f067aa0ba902b7-01` })
    expect(lastServed().headers.traceparent).toMatch(/^00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-00$/)
  })

  test('answers cannot be sniffed, framed or run', async () => {
    const { headers } = await fetch(`${world.url}/health`)
    expect(headers.get('x-content-type-options')).toBe('nosniff')
    expect(headers.get('content-security-policy')).toContain("default-src 'none'")
    expect(headers.get('strict-transport-security')).toContain('max-age=')
  })

  test('browsers may call from the named origin alone', async () => {
    const preflight = (origin: string) =>
      fetch(`${world.url}/v1/chat/completions`, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' },
      })
    const named = await preflight(ORIGIN)
    expect(named.status).toBe(204)
    expect(named.headers.get('access-control-allow-origin')).toBe(ORIGIN)
    expect(named.headers.get('access-control-allow-headers')).toContain('authorization')
    const other = await preflight('https://evil.example')
    expect(other.headers.get('access-control-allow-origin')).toBeNull()
  })

  test('no log line has a token, a prompt or a name that a caller wrote', async () => {
    await world.post('/generate', `${token.slice(0, -1)}x`, { inputs: PROMPT })
    await world.post('/generate', token, {
      inputs: PROMPT,
      parameters: { adapter_id: 'org/x', api_token: ADAPTER_TOKEN },
    })
    await fetch(`${world.url}/${encodeURIComponent(PROMPT)}`, { headers: { authorization: `Bearer ${token}` } })
    await fetch(`${world.url}/generate`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: `{"inputs": "${PROMPT}" ${ADAPTER_TOKEN}`,
    })
    const lines = () => world.logs.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line))
    // A line is written to a pipe: it may be read after the response.
    await expect
      .poll(() => lines().at(-1), { timeout: 10_000 })
      .toMatchObject({ route: '/generate', status: 400, error: 'body_malformed' })
    expect(lines().filter((line) => line.event === 'request').length).toBeGreaterThan(5)
    const text = world.logs.join('\n')
    for (const secret of [token, token.split('_')[2]!, PROMPT, ADAPTER_TOKEN, ...Object.values(world.vars)]) {
      expect(secret.length < 8 || !text.includes(secret) || secret === ORIGIN).toBe(true)
    }
  })
})

test('a request that was served says how long it took; heartbeats and health checks that went well say nothing', async () => {
  const linesOf = (event: string) =>
    world.logs
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line))
      .filter((line) => line.event === event)
  expect((await fetch(`${world.url}/health`)).status).toBe(200)
  const response = await world.post('/generate', token, { inputs: PROMPT })
  await response.json()
  const requestId = response.headers.get('x-request-id')
  const ended = () => linesOf('request_end').find((line) => line.requestId === requestId)
  await expect.poll(ended, { timeout: 5_000 }).toMatchObject({ outcome: 'ok', ms: expect.any(Number) })
  expect(ended().ms).toBeGreaterThanOrEqual(0)
  expect(ended().ms).toBeLessThan(60_000)
  const routine = ['/health', '/fleet/heartbeat']
  expect(linesOf('request').filter(({ route, status }) => status < 300 && routine.includes(route))).toEqual([])
})

describe('without an origin in the settings', () => {
  test('no answer has a CORS header', async () => {
    const closed = await startEdgeWorld()
    try {
      const response = await fetch(`${closed.url}/health`, { headers: { origin: ORIGIN } })
      expect([...response.headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([])
    } finally {
      await closed.close()
    }
  })
})
