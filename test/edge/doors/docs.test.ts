import { Validator } from '@seriousme/openapi-schema-validator'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { parseEmbedRequest, parseTokenizeRequest } from '../../../shared/api/embed-request.ts'
import { parseGenerateBody } from '../../../shared/api/generate-body.ts'
import { GENERATE_ROUTES } from '../../../shared/api/generate-request.ts'
import { DOCUMENTED_ROUTES } from '../../../shared/api/openapi-routes.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

let world: EdgeWorld
beforeAll(async () => {
  world = await startEdgeWorld()
})
afterAll(() => world.close())

const documentSchema = z.looseObject({
  openapi: z.literal('3.1.0'),
  servers: z.array(z.object({ url: z.url() })),
  paths: z.record(z.string(), z.record(z.string(), z.looseObject({ operationId: z.string() }))),
})

async function readDocument() {
  const { token } = await world.createTenant({ name: `reader-${crypto.randomUUID().slice(0, 8)}` })
  return documentSchema.parse(await (await world.get('/api-doc/openapi.json', token.token)).json())
}

test('the OpenAPI document needs a token, and is a valid one', async () => {
  expect((await fetch(`${world.url}/api-doc/openapi.json`)).status).toBe(401)
  const document = await readDocument()
  expect(document.servers[0]?.url).toBe(world.url)
  expect(await new Validator().validate(document)).toEqual({ valid: true })
  const ids = Object.values(document.paths).flatMap((methods) => Object.values(methods).map((one) => one.operationId))
  expect(new Set(ids).size).toBe(ids.length)
})

test('every route for tenants is in the document, and no other', async () => {
  // Imported untyped: it is written for another runtime.
  const file = new URL('../../../edge/app.ts', import.meta.url).href
  const { createApp } = (await import(file)) as { createApp: () => { routes: { method: string; path: string }[] } }
  const routes = createApp().routes.filter(({ method, path }) => method !== 'ALL' && !path.includes('*'))
  const forTenants = routes.filter(({ path }) => !path.startsWith('/admin') && !path.startsWith('/fleet'))
  const served = forTenants.map(({ method, path }) => `${method} ${path.replace(/:(\w+)(?:\{[^}]*\})?/g, '{$1}')}`)
  const document = await readDocument()
  const documented = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  )
  expect(documented.sort()).toEqual([...new Set(served)].sort())
})

test('each example of the document is a body that its route takes', () => {
  const withBody = DOCUMENTED_ROUTES.filter(({ request }) => request !== undefined)
  expect(withBody).toHaveLength(9)
  for (const { path, example } of withBody) {
    expect([path, parse(path, example).ignored]).toEqual([path, []])
  }
})

function parse(path: string, body: unknown): { ignored: string[] } {
  switch (path) {
    case '/embed':
    case '/v1/embeddings':
      return parseEmbedRequest(body, path)
    case '/tokenize':
      return parseTokenizeRequest(body)
    default:
      return parseGenerateBody(body, GENERATE_ROUTES.find((route) => route === path) ?? expect.fail(path))
  }
}

test('the page to try it loads nothing from elsewhere, and its script is the one its policy allows', async () => {
  const response = await fetch(`${world.url}/docs`)
  const page = await response.text()
  expect(response.headers.get('content-type')).toContain('text/html')
  expect(page).not.toMatch(/(?:src|href)=/)
  const script = /<script>([\s\S]*)<\/script>/.exec(page)?.[1] ?? ''
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(script))
  const policy = response.headers.get('content-security-policy')
  expect(policy).toContain(`'sha256-${Buffer.from(digest).toString('base64')}'`)
  expect(policy).toContain("default-src 'none'")
})
