import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { IssuedToken } from '../../../shared/edge-api.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'
import { answerStream, answerText, type StubNode } from '../stub-node.ts'

/** Everywhere within this, the live streams included. */
const PROMISED_MS = 5_000

let world: EdgeWorld
let node: StubNode
beforeAll(async () => {
  world = await startEdgeWorld()
  node = world.nodes[0]!
})
afterAll(() => world.close())

const revoke = (keyId: string) => world.admin('POST', `/admin/tokens/${keyId}/revoke`)

/** Marks the token revoked in the database alone, as when another isolate was told. */
async function revokeElsewhere(keyId: string): Promise<void> {
  await world.database.prepare('UPDATE tokens SET revoked_at = ? WHERE key_id = ?').bind(Date.now(), keyId).run()
}

describe('a revoked token', () => {
  test('is refused at once where it was revoked, and within five seconds elsewhere', async () => {
    node.answer = answerText('hello')
    const here = await world.createTenant({ name: 'here' })
    expect((await world.post('/generate', here.token.token, { inputs: 'x' })).status).toBe(200)
    await revoke(here.token.keyId)
    const refused = await world.post('/generate', here.token.token, { inputs: 'x' })
    expect([refused.status, await refused.json()]).toMatchObject([401, { code: 'token_revoked' }])

    const elsewhere = await world.createTenant({ name: 'elsewhere' })
    expect((await world.get('/v1/models', elsewhere.token.token)).status).toBe(200)
    await revokeElsewhere(elsewhere.token.keyId)
    await expect
      .poll(async () => (await world.get('/v1/models', elsewhere.token.token)).status, {
        timeout: PROMISED_MS,
        interval: 200,
      })
      .toBe(401)
  })

  test.each([
    [
      '/generate_stream',
      { inputs: 'x' },
      (error: object) => expect(error).toMatchObject({ code: 'token_revoked', error_type: 'authentication' }),
    ],
    [
      '/v1/completions',
      { model: 'demo/base', prompt: 'x', stream: true },
      (error: object) =>
        expect(error).toMatchObject({ error: { code: 'token_revoked', type: 'authentication_error' } }),
    ],
  ])('ends a live stream of %s with an error event, also a silent one', async (path, body, check) => {
    const { token } = await world.createTenant({ name: `live${path.replaceAll(/\W/g, '-')}` })
    let events = 0
    // One token, then silence: nothing but the watch can end it.
    node.answer = answerStream(2, () => (events++ === 0 ? Promise.resolve() : new Promise(() => {})))
    const response = await world.post(path, token.token, body)
    const served = node.served.at(-1)!
    const startedAt = performance.now()
    await revokeElsewhere(token.keyId)
    const text = await response.text()
    expect(performance.now() - startedAt).toBeLessThan(PROMISED_MS)
    const data = [...text.matchAll(/^data: (.*)$/gm)].map(([, line = '']) => line)
    expect(data[0]).toContain('"text":"t1"')
    check(JSON.parse(data[1] ?? '{}'))
    await served.aborted
  })
})

describe('rotating a token', () => {
  test('gives a new one; the old one works for its grace and no longer', async () => {
    const { token } = await world.createTenant({ name: 'rotating' })
    const graceful = await world.admin<IssuedToken>('POST', `/admin/tokens/${token.keyId}/rotate`, { graceSeconds: 1 })
    expect(graceful.status).toBe(201)
    for (const text of [token.token, graceful.body.token]) {
      expect((await world.get('/v1/models', text)).status).toBe(200)
    }
    await expect
      .poll(async () => (await world.get('/v1/models', token.token)).status, { timeout: 3_000, interval: 200 })
      .toBe(401)
    const next = await world.admin<IssuedToken>('POST', `/admin/tokens/${graceful.body.keyId}/rotate`)
    expect((await world.get('/v1/models', graceful.body.token)).status).toBe(401)
    expect((await world.get('/v1/models', next.body.token)).status).toBe(200)
    expect((await world.admin('POST', `/admin/tokens/${graceful.body.keyId}/rotate`)).status).toBe(409)
  })
})

test('a rotated token keeps the old one’s expiry date, unless another is asked for', async () => {
  await world.createTenant({ name: 'guest' })
  const [inAnHour, inTwo] = [1, 2].map((hours) => new Date(Date.now() + hours * 3_600_000).toISOString())
  const lent = await world.admin<IssuedToken>('POST', '/admin/tenants/guest/tokens', { expiresAt: inAnHour })
  const kept = await world.admin<IssuedToken>('POST', `/admin/tokens/${lent.body.keyId}/rotate`)
  expect(kept.body.expiresAt).toBe(inAnHour)
  const path = `/admin/tokens/${kept.body.keyId}/rotate`
  const longer = await world.admin<IssuedToken>('POST', path, { expiresAt: inTwo })
  expect(longer.body.expiresAt).toBe(inTwo)
})

describe('a disabled tenant', () => {
  test('is refused with all its tokens, and comes back', async () => {
    const { token } = await world.createTenant({ name: 'paused' })
    await world.admin('PATCH', '/admin/tenants/paused', { disabled: true })
    expect((await world.get('/v1/models', token.token)).status).toBe(401)
    await world.admin('PATCH', '/admin/tenants/paused', { disabled: false })
    expect((await world.get('/v1/models', token.token)).status).toBe(200)
  })
})

describe('what is stored', () => {
  test('is a hash and never the token', async () => {
    const { token } = await world.createTenant({ name: 'hashed' })
    const { results } = await world.database.prepare('SELECT * FROM tokens').all()
    const dump = JSON.stringify(results)
    expect(dump).toContain(token.keyId)
    expect(dump).not.toContain(token.token.split('_')[2])
    const { body } = await world.admin('GET', '/admin/tenants/hashed/tokens')
    expect(JSON.stringify(body)).not.toContain(token.token.split('_')[2])
  })
})
