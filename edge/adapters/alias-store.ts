/** The operator's aliases in D1, with a short memory per isolate: an alias is looked up at nearly every request. */

import type { AdapterRef } from '../../shared/adapter-ref.ts'
import { isAdapterSource } from '../../shared/adapter-ref.ts'
import type { AliasView, SetAlias } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { createRenewedMemory } from '../renewed-memory.ts'
import type { Page } from '../tenants/tenant-store.ts'

interface AliasRow {
  alias: string
  source: string
  adapter_id: string
  revision: string | null
  generation: number
  updated_at: number
}

/** How long an isolate may still resolve an alias the old way after a change made elsewhere. */
export const ALIAS_TTL_MS = 2_000
/** From this age on it is read again behind a request, so that an alias in use is never waited for. */
const RENEW_AGE_MS = 1_000
/** Unknown names are remembered too. */
const MAX_REMEMBERED = 20_000

const PAGE_SIZE = 200

export function createAliasStore(db: D1Database, now: () => number) {
  let listed: { aliases: AliasView[]; readAt: number } | undefined

  const targets = createRenewedMemory<AdapterRef>({
    read: async (alias) => {
      const row = await find(alias)
      return row === null ? undefined : toRef(row)
    },
    now,
    renewAgeMs: RENEW_AGE_MS,
    mostAgeMs: ALIAS_TTL_MS,
    mostEntries: MAX_REMEMBERED,
  })

  async function list(after: string): Promise<Page<AliasView>> {
    const { results } = await db
      .prepare('SELECT * FROM aliases WHERE alias > ? ORDER BY alias LIMIT ?')
      .bind(after, PAGE_SIZE + 1)
      .all<AliasRow>()
    const items = results.slice(0, PAGE_SIZE).map(toView)
    return { items, next: results.length > PAGE_SIZE ? (items.at(-1)?.alias ?? null) : null }
  }

  async function listAll(): Promise<AliasView[]> {
    const { results } = await db.prepare('SELECT * FROM aliases ORDER BY alias').all<AliasRow>()
    return results.map(toView)
  }

  /** All of them as of a moment ago, for those who ask often. */
  async function listRecent(): Promise<readonly AliasView[]> {
    if (listed === undefined || now() - listed.readAt >= ALIAS_TTL_MS) {
      const readAt = now()
      listed = { aliases: await listAll(), readAt }
    }
    return listed.aliases
  }

  function forget(alias: string): void {
    targets.forget(alias)
    listed = undefined
  }

  async function set(alias: string, target: SetAlias): Promise<AliasView> {
    const { source, id, revision = null, ifGeneration } = target
    const written = await db
      .prepare(
        // The condition holds for the row as it is at the moment of writing: two callers cannot both win.
        `INSERT INTO aliases (alias, source, adapter_id, revision, generation, updated_at)
         SELECT ?1, ?2, ?3, ?4, 1, ?5
         WHERE ?6 IS NULL OR ?6 = COALESCE((SELECT generation FROM aliases WHERE alias = ?1), 0)
         ON CONFLICT (alias) DO UPDATE SET source = ?2, adapter_id = ?3, revision = ?4,
           generation = generation + 1, updated_at = ?5
         RETURNING *`,
      )
      .bind(alias, source, id, revision, now(), ifGeneration ?? null)
      .first<AliasRow>()
    forget(alias)
    if (written === null) {
      throw await generationConflict(alias, ifGeneration)
    }
    return toView(written)
  }

  async function remove(alias: string, ifGeneration: number | undefined): Promise<void> {
    const removed = await db
      .prepare('DELETE FROM aliases WHERE alias = ?1 AND (?2 IS NULL OR generation = ?2) RETURNING alias')
      .bind(alias, ifGeneration ?? null)
      .first()
    forget(alias)
    if (removed !== null) {
      return
    }
    if ((await find(alias)) === null) {
      throw new RingletError('route_unknown', 'there is no such alias')
    }
    throw await generationConflict(alias, ifGeneration)
  }

  async function generationConflict(alias: string, wanted: number | undefined): Promise<RingletError> {
    const generation = (await find(alias))?.generation ?? 0
    return new RingletError('conflict', `the alias is at generation ${generation}, not ${wanted}`, {
      param: 'ifGeneration',
    })
  }

  function find(alias: string): Promise<AliasRow | null> {
    return db.prepare('SELECT * FROM aliases WHERE alias = ?').bind(alias).first<AliasRow>()
  }

  /** `defer` keeps the request's context alive for a renewal in the background. */
  return { resolve: targets.find, list, listRecent, set, remove }
}

export type AliasStore = ReturnType<typeof createAliasStore>

function toView(row: AliasRow): AliasView {
  const { source, id, revision } = toRef(row)
  return {
    alias: row.alias,
    source,
    id,
    revision: revision ?? null,
    generation: row.generation,
    updatedAt: new Date(row.updated_at).toISOString(),
  }
}

function toRef(row: AliasRow): AdapterRef {
  if (!isAdapterSource(row.source)) {
    throw new Error(`alias ${row.alias} is stored with an unknown source`)
  }
  return { source: row.source, id: row.adapter_id, ...(row.revision === null ? {} : { revision: row.revision }) }
}
