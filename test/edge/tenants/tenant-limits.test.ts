import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { UsageRow } from '../../../shared/edge-api.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'
import { answerStream, answerText, type StubNode } from '../stub-node.ts'

let world: EdgeWorld
let node: StubNode
let stateDir: string
/** A hub that answers when it is told to. */
let hub: Server
beforeAll(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'ringlet-edge-'))
  hub = createServer().listen(0, '127.0.0.1')
  await once(hub, 'listening')
  const HF_ENDPOINT = `http://127.0.0.1:${(hub.address() as AddressInfo).port}`
  world = await startEdgeWorld({ stateDir, vars: { HF_ENDPOINT } })
  node = world.nodes[0]!
})
afterAll(async () => {
  await world.close()
  hub.closeAllConnections()
  hub.close()
  await rm(stateDir, { recursive: true })
})

const usageOf = async (tenant: string): Promise<UsageRow[]> => {
  const { body } = await world.admin<{ items: UsageRow[] }>('GET', `/admin/usage?tenant=${tenant}`)
  return body.items
}

describe('a tenant’s limits', () => {
  test('requests per minute: 429 with Retry-After, in the shape of the route', async () => {
    const { token } = await world.createTenant({ name: 'rpm', limits: { requestsPerMinute: 2 } })
    node.answer = answerText('hello')
    for (let i = 0; i < 2; i++) {
      expect((await world.post('/generate', token.token, { inputs: 'x' })).status).toBe(200)
    }
    const refused = await world.post('/generate', token.token, { inputs: 'x' })
    expect([refused.status, await refused.json()]).toMatchObject([
      429,
      { code: 'rate_limited', error_type: 'overloaded' },
    ])
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(50)
    const onV1 = await world.post('/v1/completions', token.token, { model: 'demo/base', prompt: 'x' })
    expect(await onV1.json()).toMatchObject({ error: { type: 'rate_limit_error' } })
  })

  test('requests at once: a place is free again when its stream ends', async () => {
    const { token } = await world.createTenant({ name: 'busy', limits: { concurrentRequests: 1 } })
    let finish = () => {}
    const finished = new Promise<void>((resolve) => {
      finish = resolve
    })
    node.answer = answerStream(1, () => finished)
    const stream = await world.post('/generate_stream', token.token, { inputs: 'x' })
    expect((await world.post('/generate_stream', token.token, { inputs: 'x' })).status).toBe(429)
    finish()
    await stream.text()
    node.answer = answerText('hello')
    await expect
      .poll(async () => (await world.post('/generate', token.token, { inputs: 'x' })).status, { timeout: 5_000 })
      .toBe(200)
  })

  test('a refused adapter gives its place back', async () => {
    const { token } = await world.createTenant({ name: 'mistaken', limits: { concurrentRequests: 1 } })
    const wrong = { inputs: 'x', parameters: { adapter_id: 'nobody' } }
    for (let i = 0; i < 3; i++) {
      const response = await world.post('/generate', token.token, wrong)
      expect(response.status === 404 || response.status === 429).toBe(true)
    }
    await expect
      .poll(async () => (await world.post('/generate', token.token, wrong)).status, { timeout: 5_000 })
      .toBe(404)
  })

  test('a client that leaves while its adapter’s home is asked gives its place back', async () => {
    const { token } = await world.createTenant({ name: 'hasty', limits: { concurrentRequests: 1 } })
    const leaving = new AbortController()
    const asked = once(hub, 'request') as Promise<[unknown, ServerResponse]>
    const left = fetch(`${world.url}/generate`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token.token}`, 'content-type': 'application/json' },
      body: JSON.stringify({ inputs: 'x', parameters: { adapter_id: 'slow/one', adapter_source: 'hub' } }),
      signal: leaving.signal,
    })
    const [, answer] = await asked
    leaving.abort()
    await expect(left).rejects.toThrow()
    answer.writeHead(404).end()
    node.answer = answerText('hello')
    await expect
      .poll(async () => (await world.post('/generate', token.token, { inputs: 'x' })).status, { timeout: 10_000 })
      .toBe(200)
  })

  test('the budget and the cap on new tokens go into the ticket', async () => {
    const { token, tenant } = await world.createTenant({ name: 'thrifty', limits: { maxNewTokens: 64 } })
    node.answer = answerText('hello')
    await world.post('/generate', token.token, { inputs: 'x' })
    expect(node.served.at(-1)!.ticket.limits).toEqual({ maxNewTokens: 64 })
    await world.admin('PATCH', `/admin/tenants/${tenant.name}`, { limits: { maxNewTokens: null, tokensPerMonth: 40 } })
    await world.post('/generate', token.token, { inputs: 'x' })
    expect(node.served.at(-1)!.ticket.limits.maxNewTokens).toBeLessThanOrEqual(40)
    node.answer = answerText('hello', 20, 20)
    await world.post('/generate', token.token, { inputs: 'x' })
    await expect
      .poll(async () => (await (await world.post('/generate', token.token, { inputs: 'x' })).json()) as object, {
        timeout: 5_000,
      })
      .toMatchObject({ code: 'budget_exhausted' })
  })
})

describe('usage', () => {
  test('counts prompt and generated tokens by tenant, adapter and day, streams included', async () => {
    const { token } = await world.createTenant({ name: 'counted' })
    node.answer = answerText('hello', 7, 4)
    await world.post('/generate', token.token, { inputs: 'x' })
    await world.post('/generate', token.token, { inputs: 'x', parameters: { adapter_id: 'local:pirate' } })
    node.answer = answerStream(5)
    await (
      await world.post('/generate_stream', token.token, { inputs: 'x', parameters: { adapter_id: 'local:pirate' } })
    ).text()
    const day = new Date().toISOString().slice(0, 10)
    await expect
      .poll(() => usageOf('counted'), { timeout: 5_000 })
      .toEqual([
        { tenant: 'counted', adapter: 'base', day, requests: 1, promptTokens: 7, generatedTokens: 4 },
        { tenant: 'counted', adapter: 'local:pirate', day, requests: 2, promptTokens: 10, generatedTokens: 9 },
      ])
  })

  test('reads as CSV, with ids that no spreadsheet takes for a formula', async () => {
    const { token } = await world.createTenant({ name: 'sheet' })
    node.answer = answerText('hello', 7, 4)
    const parameters = { adapter_id: 'a,"b"', adapter_source: 'local' }
    await world.post('/generate', token.token, { inputs: 'x', parameters })
    await expect.poll(async () => (await usageOf('sheet')).length, { timeout: 5_000 }).toBe(1)
    const response = await world.get('/admin/usage?tenant=sheet&format=csv', world.vars.RINGLET_ADMIN_TOKEN ?? '')
    expect(response.headers.get('content-type')).toContain('text/csv')
    const day = new Date().toISOString().slice(0, 10)
    expect(await response.text()).toBe(
      `tenant,adapter,day,requests,promptTokens,generatedTokens\r\nsheet,"local:a,""b""",${day},1,7,4\r\n`,
    )
  })

  test('and tenants, tokens and counters outlive a restart', async () => {
    const { token } = await world.createTenant({ name: 'lasting', limits: { requestsPerMinute: 2 } })
    node.answer = answerText('hello', 7, 4)
    for (let i = 0; i < 2; i++) {
      await world.post('/generate', token.token, { inputs: 'x' })
    }
    await expect.poll(async () => (await usageOf('lasting'))[0]?.requests, { timeout: 5_000 }).toBe(2)
    await world.close()
    world = await startEdgeWorld({ stateDir })
    node = world.nodes[0]!
    expect((await world.get('/v1/models', token.token)).status).toBe(200)
    expect((await world.post('/generate', token.token, { inputs: 'x' })).status).toBe(429)
    expect(await usageOf('lasting')).toMatchObject([{ requests: 2, promptTokens: 14, generatedTokens: 8 }])
  })
})
