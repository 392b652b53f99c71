/** The operator's aliases: names without `/` that stand for an adapter at its home. */

import { Hono } from 'hono'
import { z } from 'zod'
import type { AdapterRef } from '../../shared/adapter-ref.ts'
import { parseBody } from '../../shared/api/body-parse.ts'
import { aliasNameSchema, setAliasSchema } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { checkPlainId } from '../adapters/adapter-scope.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import { readBody } from '../doors/json-body.ts'
import { forwardDeps } from '../routes/serve.ts'

const nameSchema = z.object({ alias: aliasNameSchema })
const removeQuery = z.object({ ifGeneration: z.coerce.number().int().min(1).optional() })

export function aliasRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/aliases', async (c) => c.json(await c.env.aliases.list(c.req.query('after') ?? '')))

  app.put('/aliases/:alias', async (c) => {
    const { alias } = parseBody(nameSchema, { alias: c.req.param('alias') })
    const target = await readBody(c, setAliasSchema)
    checkTarget(target)
    await checkNotBase(c, alias)
    return c.json(await c.env.aliases.set(alias, target))
  })

  app.delete('/aliases/:alias', async (c) => {
    const { ifGeneration } = parseBody(removeQuery, c.req.query())
    await c.env.aliases.remove(c.req.param('alias'), ifGeneration)
    return c.body(null, 204)
  })
  return app
}

function checkTarget({ source, id, revision }: AdapterRef): void {
  checkPlainId({ source, id }, 'id')
  if (revision !== undefined && source !== 'hub') {
    throw new RingletError('field_invalid', `only hub adapters have a revision; given for ${source}`, {
      param: 'revision',
    })
  }
}

/** The base's own name always means the base, so such an alias could never answer. */
async function checkNotBase(c: AppContext, alias: string): Promise<void> {
  const { baseModels } = await forwardDeps(c).fleet()
  if (baseModels.includes(alias)) {
    throw new RingletError('conflict', `'${alias}' is the name of the base model`, { param: 'alias' })
  }
}
