import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

interface Route {
  method: string
  path: string
}

/** The app's own table, so that a new route cannot be forgotten here. Imported untyped: it is written for another runtime. */
async function routeTable(): Promise<Route[]> {
  const file = new URL('../../../edge/app.ts', import.meta.url).href
  const { createApp } = (await import(file)) as { createApp: () => { routes: Route[] } }
  const routes = createApp().routes.filter((route) => route.method !== 'ALL' && !route.path.includes('*'))
  const seen = new Map(routes.map(({ method, path }) => [`${method} ${path}`, { method, path }]))
  return [...seen.values()]
}

/** The only ones that answer without a credential. */
const OPEN = ['GET /', 'GET /health', 'GET /ping', 'GET /docs']

const WELL_FORMED = `rl_${'a'.repeat(16)}_${'A'.repeat(43)}`

const WRONG_CREDENTIALS: [string, Record<string, string>][] = [
  ['no header', {}],
  ['an empty bearer', { authorization: 'Bearer ' }],
  ['another scheme', { authorization: `Basic ${btoa('admin:admin')}` }],
  ['a text that is no token', { authorization: 'Bearer admin' }],
  ['a well-formed token that nobody has', { authorization: `Bearer ${WELL_FORMED}` }],
  ['a token in another header', { 'x-adapter-token': WELL_FORMED, 'x-ringlet-ticket': 'k1.e30.AAAA' }],
]

let world: EdgeWorld
let routes: Route[]
beforeAll(async () => {
  ;[world, routes] = await Promise.all([startEdgeWorld(), routeTable()])
})
afterAll(() => world.close())

const call = ({ method, path }: Route, headers: Record<string, string>) =>
  fetch(world.url + path.replace(/:\w+(\{[^}]*\})?/g, 'some'), {
    method,
    headers: { ...headers, ...(method === 'GET' ? {} : { 'content-type': 'application/json' }) },
    ...(method === 'GET' || method === 'DELETE' ? {} : { body: '{}' }),
  })

describe('every route of the app', () => {
  test('is in the table that this test walks', () => {
    expect(routes.length).toBeGreaterThan(30)
  })

  test.each(WRONG_CREDENTIALS)('refuses %s with 401', async (_, headers) => {
    for (const route of routes) {
      const name = `${route.method} ${route.path}`
      const response = await call(route, headers)
      await response.body?.cancel()
      expect([name, response.status]).toEqual([name, OPEN.includes(name) ? 200 : 401])
    }
  })

  test('refuses a revoked token with 401', async () => {
    const { token } = await world.createTenant({ name: 'walker', scopes: { admin: true } })
    await world.admin('POST', `/admin/tokens/${token.keyId}/revoke`)
    for (const route of routes.filter(({ method, path }) => !OPEN.includes(`${method} ${path}`))) {
      const response = await call(route, { authorization: `Bearer ${token.token}` })
      const { status } = response
      await response.body?.cancel()
      expect([route.path, status]).toEqual([route.path, 401])
    }
  })

  test('refuses a tenant without the admin scope on /admin with 403', async () => {
    const { token } = await world.createTenant({ name: 'plain' })
    for (const route of routes.filter(({ path }) => path.startsWith('/admin'))) {
      const response = await call(route, { authorization: `Bearer ${token.token}` })
      expect([route.path, response.status]).toEqual([route.path, 403])
      expect(await response.json()).toMatchObject({ code: 'scope_denied' })
    }
  })

  test('the admin token is no tenant', async () => {
    const response = await world.get('/v1/models', world.vars.RINGLET_ADMIN_TOKEN ?? '')
    expect(response.status).toBe(401)
  })

  test('no refusal reached a node', () => {
    expect(world.nodes.flatMap((node) => node.served)).toEqual([])
  })
})

describe('what is no route', () => {
  test('is 401 without a token, 404 with one, 405 with another method', async () => {
    const { token } = await world.createTenant({ name: 'lost' })
    expect((await fetch(`${world.url}/nowhere`)).status).toBe(401)
    const unknown = await world.get('/nowhere', token.token)
    expect([unknown.status, await unknown.json()]).toMatchObject([404, { code: 'route_unknown' }])
    const wrongMethod = await world.get('/generate', token.token)
    expect(wrongMethod.status).toBe(405)
    expect(wrongMethod.headers.get('allow')).toBe('POST')
    const onV1 = await world.get('/v1/chat/completions', token.token)
    expect(await onV1.json()).toMatchObject({ error: { code: 'method_not_allowed' } })
    const admin = await world.admin('GET', '/admin/nowhere')
    expect(admin).toMatchObject({ status: 404, body: { code: 'route_unknown' } })
  })
})
