import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type FakeHub, startFakeHub } from '../../support/fake-hub.ts'
import { type FakePredibase, startFakePredibase } from '../../support/fake-predibase.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'
import type { StubNode } from '../stub-node.ts'

const FILES = { 'adapter_config.json': new TextEncoder().encode('{}') }

let hub: FakeHub
let predibase: FakePredibase
let world: EdgeWorld
let node: StubNode
let token: string
beforeAll(async () => {
  ;[hub, predibase] = await Promise.all([startFakeHub(), startFakePredibase()])
  world = await startEdgeWorld({ vars: { HF_ENDPOINT: hub.url, PREDIBASE_GATEWAY_ENDPOINT: predibase.url } })
  node = world.nodes[0]!
  token = (await world.createTenant({ name: 'caller' })).token.token
})
afterAll(async () => {
  await world.close()
  await Promise.all([hub.close(), predibase.close()])
})

const ask = (adapterId: string, adapterToken?: string, source = 'hub') =>
  world.post('/generate', token, {
    inputs: 'x',
    parameters: {
      adapter_id: adapterId,
      adapter_source: source,
      ...(adapterToken === undefined ? {} : { api_token: adapterToken }),
    },
  })

/** All that a caller can see of a refusal, but for what differs between any two answers. */
async function seen(response: Response, name: string) {
  const headers = [...response.headers].filter(([header]) => !['x-request-id', 'date'].includes(header))
  const body = await response.text()
  return {
    status: response.status,
    headers: headers.map(([k, v]) => [k, k === 'content-length' ? '' : v]),
    body: body.replaceAll(name, 'NAME'),
  }
}

describe('a private adapter of the hub', () => {
  test('answers its owner’s token, at the exact revision, and the node gets that token', async () => {
    const commit = hub.commit({ id: 'alice/secret', tokens: ['a-token'], files: FILES })
    const response = await ask('alice/secret', 'a-token')
    expect(response.status).toBe(200)
    const served = node.generated().at(-1)!
    expect(served.ticket.adapter).toEqual({
      kind: 'single',
      ref: { source: 'hub', id: 'alice/secret', revision: commit },
    })
    expect(served.adapterTokens).toEqual({ 'hub:alice/secret': 'a-token' })
  })

  test('is resident, and still refuses other tokens, none, and a revoked one, as if it did not exist', async () => {
    const commit = hub.commit({ id: 'alice/resident', tokens: ['a-token'], files: FILES })
    const resident = { ref: `hub:alice/resident@${commit}`, digest: 'd', tier: 'engine' as const }
    await world.report(node, [resident])
    expect((await ask('alice/resident', 'a-token')).status).toBe(200)
    const before = node.generated().length

    const absent = await seen(await ask('alice/nowhere', 'b-token'), 'alice/nowhere')
    expect(absent.status).toBe(404)
    expect(absent.body).toContain('adapter_not_found')
    expect(await seen(await ask('alice/resident', 'b-token'), 'alice/resident')).toEqual(absent)
    expect(await seen(await ask('alice/resident'), 'alice/resident')).toEqual(absent)
    hub.revoke('alice/resident', 'a-token')
    expect(await seen(await ask('alice/resident', 'a-token'), 'alice/resident')).toEqual(absent)
    expect(node.generated().length).toBe(before)
  })

  test('the header x-adapter-token does the same; the tenant’s own token is never shown to a home', async () => {
    hub.commit({ id: 'alice/by-header', tokens: ['a-token'], files: FILES })
    const body = { model: 'alice/by-header', prompt: 'x' }
    const withHeader = await world.post('/v1/completions', token, body, { 'x-adapter-token': 'a-token' })
    expect(withHeader.status).toBe(200)
    hub.commit({ id: 'alice/tenant-token', tokens: [token], files: FILES })
    const refused = await world.post('/v1/completions', token, { ...body, model: 'alice/tenant-token' })
    expect([refused.status, await refused.json()]).toMatchObject([404, { error: { code: 'model_not_found' } }])
  })

  test('is asked about at every request', async () => {
    hub.commit({ id: 'alice/often', tokens: ['a-token'], files: FILES })
    const asked = () => hub.requests.filter((request) => request.includes('/api/models/alice/often/')).length
    for (let i = 1; i <= 3; i++) {
      await ask('alice/often', 'a-token')
      expect(asked()).toBe(i)
    }
  })

  test('of a merge: each part with its own token, and one refusal refuses all', async () => {
    hub.commit({ id: 'alice/part', tokens: ['a-token'], files: FILES })
    hub.commit({ id: 'bob/part', tokens: ['b-token'], files: FILES })
    const merge = (api_tokens: string[]) =>
      world.post('/generate', token, {
        inputs: 'x',
        parameters: { merged_adapters: { ids: ['alice/part', 'bob/part'], weights: [1, 1], api_tokens } },
      })
    expect((await merge(['a-token', 'b-token'])).status).toBe(200)
    const refused = await merge(['a-token', 'a-token'])
    expect([refused.status, await refused.json()]).toMatchObject([404, { error: expect.stringContaining('bob/part') }])
  })
})

test('a merge of two homes: each sees the tokens of its own parts alone', async () => {
  hub.commit({ id: 'alice/half', tokens: ['a-token'], files: FILES })
  predibase.versions.push({ repo: 'half', version: 1, status: 'completed', adapterPath: 'x', tokens: ['p-token'] })
  const merge = (tokens: object) =>
    world.post('/generate', token, {
      inputs: 'x',
      parameters: {
        merged_adapters: { ids: ['alice/half', 'half/1'], sources: ['hub', 'pbase'], weights: [1, 1], ...tokens },
      },
    })
  expect((await merge({ api_tokens: ['a-token', 'p-token'] })).status).toBe(200)
  const asked = [hub.requests.length, predibase.requests.length]
  // One token for both would show the hub's to Predibase, or the other way round.
  const body = {
    inputs: 'x',
    parameters: { merged_adapters: { ids: ['alice/half', 'half/1'], sources: ['hub', 'pbase'], weights: [1, 1] } },
  }
  const shared = await world.post('/generate', token, body, { 'x-adapter-token': 'a-token' })
  expect([shared.status, await shared.json()]).toMatchObject([422, { code: 'merge_invalid' }])
  expect([hub.requests.length, predibase.requests.length]).toEqual(asked)
  const own = await world.post('/generate', token, body, { 'x-adapter-token': '' })
  expect(own.status).toBe(404)
})

describe('the list of models', () => {
  test('tells what nodes hold of a private adapter to those alone who may read it', async () => {
    const commit = hub.commit({ id: 'alice/listed', tokens: ['a-token'], files: FILES })
    await world.admin('PUT', '/admin/aliases/listed', { source: 'hub', id: 'alice/listed' })
    const digest = 'ab'.repeat(32)
    const resident = { ref: `hub:alice/listed@${commit}`, digest, tier: 'engine' as const }
    const digestFor = async (adapterToken?: string) => {
      const headers = {
        authorization: `Bearer ${token}`,
        ...(adapterToken === undefined ? {} : { 'x-adapter-token': adapterToken }),
      }
      const reply = await fetch(`${world.url}/v1/models`, { headers })
      const { data } = (await reply.json()) as { data: { id: string; digest: string | null }[] }
      return data.find(({ id }) => id === 'listed')?.digest
    }
    await world.report(node, [resident])
    expect(await digestFor()).toBeNull()
    expect(await digestFor('b-token')).toBeNull()
    expect(await digestFor('a-token')).toBe(digest)
    hub.revoke('alice/listed', 'a-token')
    expect(await digestFor('a-token')).toBeNull()
  })

  test('of Predibase tells none: one name means another adapter to another account', async () => {
    predibase.versions.push({ repo: 'same', version: 1, status: 'completed', adapterPath: 'x', tokens: ['q-token'] })
    await world.admin('PUT', '/admin/aliases/same', { source: 'pbase', id: 'same/1' })
    // Of an account that is not the caller's.
    await world.report(node, [{ ref: 'pbase:same/1', digest: 'cd'.repeat(32), tier: 'engine' }])
    const headers = { authorization: `Bearer ${token}`, 'x-adapter-token': 'q-token' }
    const listed = (await (await fetch(`${world.url}/v1/models`, { headers })).json()) as {
      data: { id: string; digest: string | null }[]
    }
    expect(listed.data.find(({ id }) => id === 'same')?.digest).toBeNull()
    const answer = node.answer
    node.answer = ({ path, adapterTokens }, response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      const known =
        path === '/adapters' ? { adapters: [{ refs: ['pbase:same/1'], digest: 'cd'.repeat(32) }] } : undefined
      response.end(JSON.stringify(known ?? { digest: `of ${adapterTokens['pbase:same/1']}` }))
    }
    const one = (await (await fetch(`${world.url}/v1/models/same`, { headers })).json()) as { digest: string | null }
    node.answer = answer
    expect(one.digest).toBe('of q-token')
  })
})

describe('a gated adapter', () => {
  test('shows its name to all and answers those who may read its files', async () => {
    hub.commit({ id: 'alice/gated', gated: true, tokens: ['a-token'], files: FILES })
    expect((await ask('alice/gated', 'a-token')).status).toBe(200)
    expect((await ask('alice/gated', 'b-token')).status).toBe(404)
    expect((await ask('alice/gated')).status).toBe(404)
  })
})

describe('a public adapter', () => {
  test('needs no token, and its verdict is used again for a while', async () => {
    hub.commit({ id: 'org/public', files: FILES })
    for (let i = 0; i < 3; i++) {
      expect((await ask('org/public')).status).toBe(200)
    }
    expect(hub.requests.filter((request) => request.includes('/api/models/org/public/')).length).toBe(1)
  })

  test('a pinned revision is asked for as such', async () => {
    const first = hub.commit({ id: 'org/pinned', files: FILES })
    hub.commit({ id: 'org/pinned', files: { ...FILES, 'new.txt': new Uint8Array(1) } })
    await ask(`org/pinned@${first}`)
    expect(node.generated().at(-1)!.ticket.adapter).toMatchObject({ ref: { revision: first } })
    expect((await ask('org/pinned@no-such-branch')).status).toBe(404)
  })

  test('a likely node hears of it before the hub has answered', async () => {
    hub.commit({ id: 'org/early', files: FILES })
    await ask('org/early')
    const [hint, request] = node.served.slice(-2)
    expect(hint).toMatchObject({ path: '/adapters/prefetch', ticket: { action: 'prefetch' } })
    expect(request).toMatchObject({ path: '/generate' })
  })
})

describe('an adapter of Predibase', () => {
  test('answers its owner’s token and refuses all others as if it did not exist', async () => {
    predibase.versions.push({ repo: 'mine', version: 2, status: 'completed', adapterPath: 'x', tokens: ['p-token'] })
    predibase.legacy.set('mine', { uuid: 'u', bestRunID: 'r', versionNumber: 2, tokens: ['p-token'] })
    expect((await ask('mine/2', 'p-token', 'pbase')).status).toBe(200)
    expect(node.generated().at(-1)!.adapterTokens).toEqual({ 'pbase:mine/2': 'p-token' })
    expect((await ask('mine', 'p-token', 'pbase')).status).toBe(200)
    const absent = await seen(await ask('nowhere/2', 'q-token', 'pbase'), 'nowhere/2')
    expect(absent.status).toBe(404)
    expect(await seen(await ask('mine/2', 'q-token', 'pbase'), 'mine/2')).toEqual(absent)
    expect(await seen(await ask('mine/2', undefined, 'pbase'), 'mine/2')).toEqual(absent)
    predibase.versions.length = 0
    predibase.legacy.clear()
    expect(await seen(await ask('mine/2', 'p-token', 'pbase'), 'mine/2')).toEqual(absent)
  })
})

describe('a home that cannot be asked', () => {
  test('is 503 adapter_home_unreachable, also for what is resident', async () => {
    const commit = hub.commit({ id: 'alice/outage', tokens: ['a-token'], files: FILES })
    await world.report(node, [{ ref: `hub:alice/outage@${commit}`, digest: 'd', tier: 'engine' }])
    expect((await ask('alice/outage', 'a-token')).status).toBe(200)
    const before = node.generated().length
    hub.failRequests(1, 500)
    const failing = await ask('alice/outage', 'a-token')
    expect([failing.status, await failing.json()]).toMatchObject([503, { code: 'adapter_home_unreachable' }])
    expect(Number(failing.headers.get('retry-after'))).toBeGreaterThan(0)
    await hub.close()
    const down = await ask('alice/outage', 'a-token')
    expect([down.status, await down.json()]).toMatchObject([503, { code: 'adapter_home_unreachable' }])
    expect(node.generated().length).toBe(before)
    hub = await startFakeHub()
  })
})

describe('scopes', () => {
  test('a name out of scope is 403, an alias to one looks like no alias', async () => {
    await world.admin('PUT', '/admin/aliases/inside', { source: 'local', id: 'team-a/x' })
    await world.admin('PUT', '/admin/aliases/outside', { source: 'local', id: 'team-b/x' })
    const scopes = { sources: ['local' as const], adapters: ['team-a/*'], models: [] }
    const scoped = (await world.createTenant({ name: 'team-a', scopes })).token.token
    const name = async (adapter_id: string) => {
      const response = await world.post('/generate', scoped, { inputs: 'x', parameters: { adapter_id } })
      return [response.status, ((await response.json()) as { code?: string }).code]
    }
    expect(await name('local:team-a/x')).toEqual([200, undefined])
    expect(await name('inside')).toEqual([200, undefined])
    expect(await name('local:team-b/x')).toEqual([403, 'scope_denied'])
    expect(await name('hub:team-a/x')).toEqual([403, 'scope_denied'])
    expect(await name('outside')).toEqual([404, 'adapter_not_found'])
    expect(await name('')).toEqual([403, 'scope_denied'])
    const models = (await (await world.get('/v1/models', scoped)).json()) as { data: { id: string }[] }
    expect(models.data.map((model) => model.id)).toEqual(['inside'])
  })

  test('no S3 bucket may be named unless the operator allowed it', async () => {
    expect((await ask('s3://bucket/x', undefined, 's3')).status).toBe(403)
    const scoped = await world.createTenant({ name: 'bucketeer', scopes: { buckets: ['bucket'] } })
    const body = { inputs: 'x', parameters: { adapter_id: 's3://bucket/x', adapter_source: 's3' } }
    expect((await world.post('/generate', scoped.token.token, body)).status).toBe(200)
  })
})
