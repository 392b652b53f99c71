import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

let world: EdgeWorld
beforeAll(async () => {
  world = await startEdgeWorld()
})
afterAll(() => world.close())

const documentSchema = z.object({
  openapi: z.literal('3.1.0'),
  servers: z.array(z.object({ url: z.url() })),
  paths: z.record(z.string(), z.record(z.string(), z.looseObject({ responses: z.looseObject({}) }))),
})

test('the OpenAPI document has every route for tenants, and needs a token', async () => {
  expect((await fetch(`${world.url}/api-doc/openapi.json`)).status).toBe(401)
  const { token } = await world.createTenant({ name: 'reader' })
  const response = await world.get('/api-doc/openapi.json', token.token)
  const document = documentSchema.parse(await response.json())
  expect(document.servers[0]?.url).toBe(world.url)
  expect(Object.keys(document.paths)).toEqual(
    expect.arrayContaining([
      '/',
      '/generate',
      '/generate_stream',
      '/v1/chat/completions',
      '/v1/completions',
      '/v1/models',
    ]),
  )
})

test('each example of the document is a body that its route takes', async () => {
  const { parseGenerateBody } = await import('../../../shared/api/generate-body.ts')
  const { GENERATE_ROUTES } = await import('../../../shared/api/generate-request.ts')
  const { openApiDocument } = await import('../../../shared/api/openapi.ts')
  const withExamples = z.object({
    paths: z.record(
      z.string(),
      z.object({
        post: z
          .object({ requestBody: z.object({ content: z.record(z.string(), z.object({ example: z.unknown() })) }) })
          .optional(),
      }),
    ),
  })
  const { paths } = withExamples.parse(openApiDocument('http://localhost', '1'))
  for (const route of GENERATE_ROUTES) {
    const example = paths[route]?.post?.requestBody.content['application/json']?.example
    expect(parseGenerateBody(example, route).ignored).toEqual([])
  }
})

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
