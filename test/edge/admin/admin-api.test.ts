import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { AliasView, NodeAnswer, TenantView } from '../../../shared/edge-api.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

let world: EdgeWorld
beforeAll(async () => {
  world = await startEdgeWorld({ nodes: 2 })
})
afterAll(() => world.close())

describe('tenants', () => {
  test('are created with defaults, listed, read and changed field by field', async () => {
    const { tenant } = await world.createTenant({ name: 'acme', limits: { requestsPerMinute: 10 } })
    expect(tenant).toMatchObject({
      scopes: { sources: ['hub', 'pbase', 's3', 'local'], adapters: ['*'], models: ['*'], buckets: [], admin: false },
      limits: { requestsPerMinute: 10 },
      disabled: false,
    })
    const change = { scopes: { adapters: ['acme/*'] }, limits: { requestsPerMinute: null, concurrentRequests: 3 } }
    const changed = await world.admin<TenantView>('PATCH', '/admin/tenants/acme', change)
    expect(changed.body).toMatchObject({
      scopes: { adapters: ['acme/*'], models: ['*'] },
      limits: { concurrentRequests: 3 },
    })
    expect(changed.body.limits).toEqual({ concurrentRequests: 3 })
    expect((await world.admin<TenantView>('GET', `/admin/tenants/${tenant.id}`)).body).toEqual(changed.body)
    const { body } = await world.admin<{ items: TenantView[]; next: null }>('GET', '/admin/tenants')
    expect(body).toEqual({ items: [changed.body], next: null })
  })

  test.each([
    [{ name: 'acme' }, 409, 'conflict', 'name'],
    [{ name: 'Not Allowed' }, 422, 'field_invalid', 'name'],
    [{ name: 'x', limits: { requestsPerMinute: 0 } }, 422, 'field_invalid', 'limits.requestsPerMinute'],
    [{ name: 'x', limits: { rpm: 5 } }, 422, 'field_unknown', 'limits.rpm'],
    [{ name: 'x', scopes: { sources: ['ftp'] } }, 422, 'field_invalid', 'scopes.sources[0]'],
  ])('%j is refused with %i %s', async (input, status, code, param) => {
    expect(await world.admin('POST', '/admin/tenants', input)).toMatchObject({ status, body: { code, param } })
  })

  test('changed by several at once keep every change', async () => {
    await world.createTenant({ name: 'busy' })
    const changes = [
      { disabled: true },
      { limits: { requestsPerMinute: 1 } },
      { limits: { concurrentRequests: 2 } },
      { limits: { maxNewTokens: 3 } },
      { scopes: { adapters: ['busy/*'] } },
      { scopes: { buckets: ['loras'] } },
    ]
    await Promise.all(changes.map((change) => world.admin('PATCH', '/admin/tenants/busy', change)))
    expect((await world.admin('GET', '/admin/tenants/busy')).body).toMatchObject({
      disabled: true,
      limits: { requestsPerMinute: 1, concurrentRequests: 2, maxNewTokens: 3 },
      scopes: { adapters: ['busy/*'], buckets: ['loras'] },
    })
  })

  test('that do not exist are 404', async () => {
    expect((await world.admin('GET', '/admin/tenants/nobody')).status).toBe(404)
    expect((await world.admin('POST', '/admin/tenants/nobody/tokens', {})).status).toBe(404)
    expect((await world.admin('POST', '/admin/tokens/nothing/revoke')).status).toBe(404)
  })

  test('a tenant with the admin scope may administer', async () => {
    const { token } = await world.createTenant({ name: 'operator', scopes: { admin: true } })
    expect((await world.get('/admin/tenants', token.token)).status).toBe(200)
  })
})

describe('aliases', () => {
  test('are listed page by page', async () => {
    const names = Array.from({ length: 205 }, (_, n) => `paged-${String(n).padStart(3, '0')}`)
    await Promise.all(names.map((name) => put(name, { source: 'local', id: name })))
    const listed: string[] = []
    for (let after: string | null = ''; after !== null; ) {
      const page: { body: { items: AliasView[]; next: string | null } } = await world.admin(
        'GET',
        `/admin/aliases?after=${after}`,
      )
      expect(page.body.items.length).toBeLessThanOrEqual(200)
      listed.push(...page.body.items.map(({ alias }) => alias))
      after = page.body.next
    }
    expect(listed).toEqual(names)
    await Promise.all(names.map((name) => world.admin('DELETE', `/admin/aliases/${name}`)))
  })

  const put = (alias: string, body: object) => world.admin<AliasView>('PUT', `/admin/aliases/${alias}`, body)

  test('are set, replaced and removed, each change a generation', async () => {
    expect((await put('pirate', { source: 'local', id: 'one' })).body).toMatchObject({ generation: 1, id: 'one' })
    expect((await put('pirate', { source: 'hub', id: 'org/two', revision: 'v2' })).body).toMatchObject({
      generation: 2,
      revision: 'v2',
    })
    const { body } = await world.admin<{ items: AliasView[] }>('GET', '/admin/aliases')
    expect(body.items).toMatchObject([{ alias: 'pirate', source: 'hub', id: 'org/two', generation: 2 }])
    expect((await world.admin('DELETE', '/admin/aliases/pirate')).status).toBe(204)
    expect((await world.admin('DELETE', '/admin/aliases/pirate')).status).toBe(404)
  })

  test('of callers who compare and swap, one wins', async () => {
    const claims = ['a', 'b', 'c', 'd'].map((id) => put('contested', { source: 'local', id, ifGeneration: 0 }))
    const statuses = (await Promise.all(claims)).map(({ status }) => status).sort()
    expect(statuses).toEqual([200, 409, 409, 409])
    expect((await put('contested', { source: 'local', id: 'e', ifGeneration: 7 })).status).toBe(409)
    expect((await put('contested', { source: 'local', id: 'e', ifGeneration: 1 })).body.generation).toBe(2)
    expect((await world.admin('DELETE', '/admin/aliases/contested?ifGeneration=1')).status).toBe(409)
    expect((await world.admin('DELETE', '/admin/aliases/contested?ifGeneration=2')).status).toBe(204)
  })

  test.each([
    ['UPPER', { source: 'local', id: 'x' }, 422],
    ['x', { source: 'nowhere', id: 'x' }, 422],
    ['x', { source: 'local', id: '../x' }, 422],
    ['x', { source: 'local', id: 'x', revision: 'v1' }, 422],
    ['x', { source: 'local' }, 422],
  ])('%s → %j is refused with %i', async (alias, target, status) => {
    expect((await put(alias, target)).status).toBe(status)
  })

  test('a change counts for the next request', async () => {
    const { token } = await world.createTenant({ name: 'follower' })
    const ask = () => world.post('/generate', token.token, { inputs: 'x', parameters: { adapter_id: 'moving' } })
    expect((await ask()).status).toBe(404)
    await put('moving', { source: 'local', id: 'first' })
    await ask()
    await put('moving', { source: 'local', id: 'second' })
    await ask()
    const ids = world.nodes.flatMap((node) => node.generated().map((one) => one.ticket.adapter))
    expect(ids).toContainEqual({ kind: 'single', ref: { source: 'local', id: 'first' } })
    expect(ids).toContainEqual({ kind: 'single', ref: { source: 'local', id: 'second' } })
  })
})

describe('the fleet', () => {
  test('lists its nodes without their adapters, and drains one', async () => {
    const { body } = await world.admin<{ items: { nodeId: string; draining: boolean }[] }>('GET', '/admin/nodes')
    expect(body.items).toMatchObject([
      { nodeId: 'node-0', draining: false, baseModel: 'demo/base' },
      { nodeId: 'node-1', draining: false },
    ])
    expect(JSON.stringify(body)).not.toContain('resident"')
    expect((await world.admin('POST', '/admin/nodes/node-1/drain')).body).toEqual({ node: 'node-1', draining: true })
    await expect
      .poll(
        async () => {
          const nodes = await world.admin<{ items: { draining: boolean }[] }>('GET', '/admin/nodes')
          return nodes.body.items.map((node) => node.draining)
        },
        { timeout: 5_000 },
      )
      .toEqual([false, true])
    await world.admin('POST', '/admin/nodes/node-1/drain', { draining: false })
    expect((await world.admin('POST', '/admin/nodes/nobody/drain')).status).toBe(404)
  })

  test('explains where an adapter goes and why', async () => {
    await world.admin('PUT', '/admin/aliases/explained', { source: 'local', id: 'x' })
    const explained = await world.admin('GET', '/admin/explain?adapter=explained')
    expect(explained).toMatchObject({ status: 200, body: { placementKey: 'local:x', chosen: { reason: 'cold' } } })
    expect((await world.admin('GET', '/admin/explain')).status).toBe(422)
    expect((await world.admin('GET', '/admin/explain?adapter=nobody')).status).toBe(404)
  })

  test('is asked for its adapters, and told to load or drop one, node by node', async () => {
    for (const node of world.nodes) {
      node.answer = (request, response) => {
        response.writeHead(200, { 'content-type': 'application/json' })
        response.end(JSON.stringify({ did: request.path }))
      }
    }
    const list = await world.admin<{ nodes: NodeAnswer[] }>('GET', '/admin/adapters')
    expect(list.body.nodes).toEqual([
      { node: 'node-0', status: 200, body: { did: '/adapters' } },
      { node: 'node-1', status: 200, body: { did: '/adapters' } },
    ])
    const pin = await world.admin<{ nodes: NodeAnswer[] }>('POST', '/admin/adapters/pin', {
      adapter: 'hub:org/name@rev',
      node: 'node-1',
      token: 'home-token',
    })
    expect(pin.body.nodes).toEqual([{ node: 'node-1', status: 200, body: { did: '/adapters/pin' } }])
    expect(world.nodes[1]!.served.at(-1)).toMatchObject({
      method: 'POST',
      ticket: { action: 'admin', adapter: { ref: { source: 'hub', id: 'org/name', revision: 'rev' } } },
      adapterTokens: { 'hub:org/name@rev': 'home-token' },
    })
  })

  test('one node that is down hides nothing of the others', async () => {
    await world.nodes[1]!.close()
    const list = await world.admin<{ nodes: NodeAnswer[] }>('GET', '/admin/adapters')
    expect(list.body.nodes).toMatchObject([{ status: 200 }, { status: 503, body: { code: 'node_unreachable' } }])
  })
})
