/** Tenants, their tokens, scopes and limits. */

import { Hono } from 'hono'
import { createTenantSchema, createTokenSchema, rotateTokenSchema, updateTenantSchema } from '../../shared/edge-api.ts'
import type { AppEnv } from '../app-types.ts'
import { readBody } from '../doors/json-body.ts'

export function tenantRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.post('/tenants', async (c) => c.json(await c.env.tenants.create(await readBody(c, createTenantSchema)), 201))
  app.get('/tenants', async (c) => c.json(await c.env.tenants.list(c.req.query('after') ?? '')))
  app.get('/tenants/:tenant', async (c) => c.json(await c.env.tenants.get(c.req.param('tenant'))))

  app.patch('/tenants/:tenant', async (c) => {
    const { tenants, directory } = c.env
    const tenant = await tenants.update(c.req.param('tenant'), await readBody(c, updateTenantSchema))
    for (const token of await tenants.listTokens(tenant.id)) {
      directory.forget(token.keyId)
    }
    return c.json(tenant)
  })

  app.get('/tenants/:tenant/tokens', async (c) => {
    return c.json({ items: await c.env.tenants.listTokens(c.req.param('tenant')) })
  })
  app.post('/tenants/:tenant/tokens', async (c) => {
    const { label, expiresAt } = await readBody(c, createTokenSchema)
    const until = expiresAt === undefined ? undefined : Date.parse(expiresAt)
    return c.json(await c.env.tenants.issueToken(c.req.param('tenant'), label, until), 201)
  })

  app.post('/tokens/:keyId/rotate', async (c) => {
    const { graceSeconds, expiresAt } = await readBody(c, rotateTokenSchema)
    const until = expiresAt === undefined ? undefined : Date.parse(expiresAt)
    const issued = await c.env.tenants.rotateToken(c.req.param('keyId'), graceSeconds, until)
    c.env.directory.forget(c.req.param('keyId'))
    return c.json(issued, 201)
  })
  app.post('/tokens/:keyId/revoke', async (c) => {
    const token = await c.env.tenants.revokeToken(c.req.param('keyId'))
    c.env.directory.forget(token.keyId)
    return c.json(token)
  })
  return app
}
