/** What may be asked for as `model`: the base and the operator's aliases, as far as the caller's token reaches. OpenAI's shapes. */

import { Hono } from 'hono'
import { type AdapterRef, formatAdapterRef, selectionRefs } from '../../shared/adapter-ref.ts'
import type { AliasView } from '../../shared/edge-api.ts'
import { mayUseBase, scopeRefusal } from '../adapters/adapter-scope.ts'
import { authorizeSelection } from '../adapters/home-check.ts'
import { adapterNotFound } from '../adapters/resolve-selection.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import type { FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import { forwardDeps, resolve } from './serve.ts'

interface ModelCard {
  id: string
  object: 'model'
  /** Unix seconds. */
  created: number
  owned_by: 'ringlet'
  /** The base's own name, or the adapter behind the name. */
  root: string
  /** The base under an adapter. */
  parent: string | null
  max_model_len: number | null
}

export function modelRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/v1/models', async (c) => {
    const snapshot = await forwardDeps(c).fleet()
    const { scopes } = c.var.tenant
    const bases = snapshot.baseModels.filter((name) => mayUseBase(name, scopes))
    const aliases = (await c.env.aliases.listRecent()).filter(
      (alias) => scopeRefusal(toRef(alias), scopes) === undefined,
    )
    return c.json({
      object: 'list',
      data: [
        ...bases.map((name) => baseCard(name, snapshot)),
        ...aliases.map((alias) => adapterCard(alias.alias, toRef(alias), Date.parse(alias.updatedAt), snapshot)),
      ],
    })
  })
  app.get('/v1/models/:model{.+}', async (c) => c.json(await findModel(c, c.req.param('model'))))
  return app
}

/** Like a request for this model: the same scopes, the same question to its home, the same 404. */
async function findModel(c: AppContext, model: string): Promise<ModelCard> {
  const snapshot = await forwardDeps(c).fleet()
  const resolved = await resolve(c, { model }, snapshot)
  if (resolved.selection.kind === 'base') {
    return baseCard(model, snapshot)
  }
  const verdict = await authorizeSelection(resolved.selection, resolved.adapterTokens, c.env.homes)
  const ref = verdict.kind === 'allowed' ? selectionRefs(verdict.selection)[0] : undefined
  if (ref === undefined) {
    throw adapterNotFound(model, 'openai')
  }
  return adapterCard(model, ref, snapshot.takenAt, snapshot)
}

function baseCard(name: string, snapshot: FleetSnapshot): ModelCard {
  return card(name, name, null, snapshot.takenAt, snapshot)
}

function adapterCard(id: string, ref: AdapterRef, changedAt: number, snapshot: FleetSnapshot): ModelCard {
  return card(id, formatAdapterRef(ref), snapshot.baseModels[0] ?? null, changedAt, snapshot)
}

function card(id: string, root: string, parent: string | null, changedAt: number, snapshot: FleetSnapshot): ModelCard {
  const lengths = snapshot.nodes.map((node) => node.maxPositions)
  return {
    id,
    object: 'model',
    created: Math.floor(changedAt / 1000),
    owned_by: 'ringlet',
    root,
    parent,
    max_model_len: lengths.length === 0 ? null : Math.min(...lengths),
  }
}

function toRef({ source, id, revision }: AliasView): AdapterRef {
  return { source, id, ...(revision === null ? {} : { revision }) }
}
