/** What may be asked for as `model`: the base and the operator's aliases, as far as the caller's token reaches. OpenAI's shapes. */

import { Hono } from 'hono'
import { type AdapterRef, type AdapterSelection, formatAdapterRef, selectionRefs } from '../../shared/adapter-ref.ts'
import type { ModelCard } from '../../shared/api/openai-reply.ts'
import type { AliasView } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { mayUseBase, scopeRefusal } from '../adapters/adapter-scope.ts'
import { authorizeSelection } from '../adapters/home-check.ts'
import { adapterNotFound, checksCallers } from '../adapters/resolve-selection.ts'
import { callNode } from '../admin/node-call.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import { residentDigests } from '../fleet/fleet-client.ts'
import type { FleetSnapshot } from '../fleet/fleet-snapshot.ts'
import { adapterTokenOf, forwardDeps, resolve } from './serve.ts'

/** Of one list, at most so many adapters are asked about at their homes; a Worker's requests are counted. */
const MAX_ASKED = 100

export function modelRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get('/v1/models', async (c) => {
    const snapshot = await forwardDeps(c).fleet()
    const { scopes } = c.var.tenant
    const bases = snapshot.baseModels.filter((name) => mayUseBase(name, scopes))
    const aliases = (await c.env.aliases.listRecent()).filter(
      (alias) => scopeRefusal(toRef(alias), scopes) === undefined,
    )
    const refs = aliases.map(toRef)
    const digests = await digestsFor(c, refs)
    const adapters = aliases.map(({ alias, updatedAt }, i) => ({
      ...adapterCard(alias, refs[i]!, Date.parse(updatedAt), snapshot),
      digest: digests[i] ?? null,
    }))
    return c.json({ object: 'list', data: [...bases.map((name) => baseCard(name, snapshot)), ...adapters] })
  })
  app.get('/v1/models/:model{.+}', async (c) => c.json(await findModel(c, c.req.param('model'))))
  return app
}

/** What nodes hold of an adapter, and that they hold it, is told to those alone who may read it at its home now. */
async function digestsFor(c: AppContext, refs: readonly AdapterRef[]): Promise<(string | undefined)[]> {
  const token = adapterTokenOf(c)
  const digests = await residentDigests(c.env.registry, refs.map(formatAdapterRef))
  let asked = 0
  return Promise.all(
    refs.map(async (ref, i) => {
      if (digests[i] === undefined || !checksCallers(ref)) {
        return digests[i]
      }
      if (!nameIsUnique(ref) || asked >= MAX_ASKED) {
        return undefined
      }
      asked += 1
      const tokens = token === undefined ? {} : { [formatAdapterRef(ref)]: token }
      const verdict = await authorizeSelection({ kind: 'single', ref }, tokens, c.env.homes).catch(unreachableHome)
      return verdict?.kind === 'allowed' ? digests[i] : undefined
    }),
  )
}

function unreachableHome(error: unknown): undefined {
  if (!(error instanceof RingletError)) {
    throw error
  }
}

/** A repository of Predibase belongs to an account: under one name nodes may hold several adapters, and the token says which. */
function nameIsUnique({ source }: AdapterRef): boolean {
  return source !== 'pbase'
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
    throw adapterNotFound(model, 'openai', 'model')
  }
  const exact = { kind: 'single', ref } as const
  const [held] = nameIsUnique(ref) ? await residentDigests(c.env.registry, [formatAdapterRef(ref)]) : []
  const { placementKey, adapterTokens } = resolved
  const digest = held ?? (await digestOf(c, { model, selection: exact, placementKey, adapterTokens }, snapshot))
  const alias = (await c.env.aliases.listRecent()).find((one) => one.alias === model)
  const changedAt = alias === undefined ? snapshot.takenAt : Date.parse(alias.updatedAt)
  return { ...adapterCard(model, ref, changedAt, snapshot), digest: digest ?? null }
}

const LIST_TIMEOUT_MS = 2_000

interface Asked {
  model: string
  selection: Extract<AdapterSelection, { kind: 'single' }>
  placementKey: string
  adapterTokens: Readonly<Record<string, string>>
}

/**
 * As the node knows it that a request would go to: it may have loaded the adapter since its last heartbeat. Where only nodes
 * see the adapter's home, that node looks there as for a request, and loads what it finds; what it does not find is 404.
 */
async function digestOf(c: AppContext, asked: Asked, snapshot: FleetSnapshot): Promise<string | undefined> {
  const { state, routingSecret, region } = forwardDeps(c)
  const placement = state.router.preview({ ...asked, routingSecret, region }, snapshot)
  const node = placement === undefined ? undefined : snapshot.ring.nodes[placement.index]
  if (node === undefined) {
    return undefined
  }
  const { tenantId } = c.var.tenant
  const control = { method: 'GET', path: '/adapters', action: 'info', tenantId, timeoutMs: LIST_TIMEOUT_MS } as const
  const spelling = formatAdapterRef(asked.selection.ref)
  let missing = false
  try {
    if (nameIsUnique(asked.selection.ref)) {
      const reply = await callNode(c, node, control)
      const { adapters } = await reply.json<{ adapters: { refs: string[]; digest: string }[] }>()
      const known = adapters.find(({ refs }) => refs.includes(spelling))?.digest
      if (known !== undefined || !onlyNodesSee(asked.selection.ref, c)) {
        return known
      }
    }
    const { selection, adapterTokens } = asked
    const look = { ...control, method: 'POST', path: '/adapters/prefetch', action: 'prefetch' } as const
    const found = await callNode(c, node, { ...look, selection, adapterTokens: { ...adapterTokens } })
    if (found.ok) {
      return (await found.json<{ digest?: string }>()).digest
    }
    missing = found.status === 404
  } catch {
    // A node that is busy or gone leaves the digest unknown; the model is there all the same.
  }
  if (missing) {
    throw adapterNotFound(asked.model, 'openai', 'model')
  }
  return undefined
}

function onlyNodesSee({ source }: AdapterRef, c: AppContext): boolean {
  return source === 'local' || source === 's3' || (source === 'hub' && c.env.homes.hubOffline)
}

function baseCard(name: string, snapshot: FleetSnapshot): ModelCard {
  const node = snapshot.ring.nodes.find(({ baseModel }) => baseModel === name)
  return { ...card(name, name, null, snapshot.takenAt, snapshot), digest: node?.baseDigest ?? null }
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
    digest: null,
    max_model_len: lengths.length === 0 ? null : Math.min(...lengths),
  }
}

function toRef({ source, id, revision }: AliasView): AdapterRef {
  return { source, id, ...(revision === null ? {} : { revision }) }
}
