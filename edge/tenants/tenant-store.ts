/** Tenants and their tokens in D1. Alone knows their tables. */

import {
  type CreatedTenant,
  type CreateTenant,
  createTenantSchema,
  type IssuedToken,
  type Limits,
  limitsSchema,
  type Scopes,
  scopesSchema,
  type TenantView,
  type TokenView,
  type UpdateTenant,
} from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { createToken, hashToken } from '../auth/token.ts'
import { fromHex, toHex } from '../hex.ts'

/** All that a request's authentication needs to know, in one row. */
export interface TokenRecord {
  keyId: string
  tokenHash: Uint8Array
  tenantId: string
  tenantName: string
  scopes: Scopes
  limits: Limits
  disabled: boolean
  /** Unix milliseconds. */
  expiresAt: number | undefined
  revokedAt: number | undefined
}

interface TenantRow {
  id: string
  name: string
  scopes: string
  limits: string
  disabled: number
  created_at: number
}

interface TokenRow {
  key_id: string
  tenant_id: string
  label: string
  created_at: number
  expires_at: number | null
  revoked_at: number | null
}

export interface Page<T> {
  items: T[]
  /** Pass it as `after` for the next page. */
  next: string | null
}

const PAGE_SIZE = 200
/** Each failure is another's success, so many in a row mean as many callers at once. */
const UPDATE_ATTEMPTS = 20

export function createTenantStore(db: D1Database, now: () => number) {
  async function findToken(keyId: string): Promise<TokenRecord | undefined> {
    const row = await db
      .prepare(
        `SELECT k.key_id, k.token_hash, k.expires_at, k.revoked_at, t.id, t.name, t.scopes, t.limits, t.disabled
         FROM tokens k JOIN tenants t ON t.id = k.tenant_id WHERE k.key_id = ?`,
      )
      .bind(keyId)
      .first<TenantRow & TokenRow & { token_hash: string }>()
    if (row === null) {
      return undefined
    }
    return {
      keyId: row.key_id,
      tokenHash: fromHex(row.token_hash),
      tenantId: row.id,
      tenantName: row.name,
      scopes: scopesSchema.parse(JSON.parse(row.scopes)),
      limits: limitsSchema.parse(JSON.parse(row.limits)),
      disabled: row.disabled !== 0,
      expiresAt: row.expires_at ?? undefined,
      revokedAt: row.revoked_at ?? undefined,
    }
  }

  async function create(input: CreateTenant): Promise<CreatedTenant> {
    const { name, scopes, limits } = createTenantSchema.parse(input)
    const row: TenantRow = {
      id: `t_${crypto.randomUUID().replaceAll('-', '')}`,
      name,
      scopes: JSON.stringify(scopes),
      limits: JSON.stringify(limits),
      disabled: 0,
      created_at: now(),
    }
    const { insert, issued } = await newToken(row.id, '', undefined)
    const tenant = db
      .prepare('INSERT INTO tenants (id, name, scopes, limits, disabled, created_at) VALUES (?, ?, ?, ?, 0, ?)')
      .bind(row.id, row.name, row.scopes, row.limits, row.created_at)
    try {
      await db.batch([tenant, insert])
    } catch (error) {
      if (error instanceof Error && error.message.includes('UNIQUE constraint failed: tenants.name')) {
        throw new RingletError('conflict', `a tenant named '${name}' exists already`, { param: 'name' })
      }
      throw error
    }
    return { ...toTenant(row), token: issued }
  }

  async function list(after: string, size = PAGE_SIZE): Promise<Page<TenantView>> {
    const { results } = await db
      .prepare('SELECT * FROM tenants WHERE name > ? ORDER BY name LIMIT ?')
      .bind(after, size + 1)
      .all<TenantRow>()
    const items = results.slice(0, size).map(toTenant)
    return { items, next: results.length > size ? (items.at(-1)?.name ?? null) : null }
  }

  /** By id or by name. */
  async function get(idOrName: string): Promise<TenantView> {
    return toTenant(await getRow(idOrName))
  }

  async function getRow(idOrName: string): Promise<TenantRow> {
    const row = await db.prepare('SELECT * FROM tenants WHERE id = ?1 OR name = ?1').bind(idOrName).first<TenantRow>()
    if (row === null) {
      throw new RingletError('route_unknown', 'there is no such tenant')
    }
    return row
  }

  /** Changes made at the same time both count: the row is written only as it was read, and read again otherwise. */
  async function update(idOrName: string, change: UpdateTenant): Promise<TenantView> {
    for (let attempt = 0; attempt < UPDATE_ATTEMPTS; attempt++) {
      const row = await getRow(idOrName)
      const next = changed(toTenant(row), change)
      const written = await db
        .prepare(
          `UPDATE tenants SET scopes = ?1, limits = ?2, disabled = ?3
           WHERE id = ?4 AND scopes = ?5 AND limits = ?6 AND disabled = ?7 RETURNING id`,
        )
        .bind(
          JSON.stringify(next.scopes),
          JSON.stringify(next.limits),
          next.disabled ? 1 : 0,
          row.id,
          row.scopes,
          row.limits,
          row.disabled,
        )
        .first()
      if (written !== null) {
        return next
      }
    }
    throw new RingletError('conflict', 'the tenant is being changed by others; try again')
  }

  async function listTokens(idOrName: string): Promise<TokenView[]> {
    const tenant = await get(idOrName)
    const { results } = await db
      .prepare('SELECT * FROM tokens WHERE tenant_id = ? ORDER BY created_at, key_id')
      .bind(tenant.id)
      .all<TokenRow>()
    return results.map(toTokenView)
  }

  async function issueToken(idOrName: string, label = '', expiresAt?: number): Promise<IssuedToken> {
    const tenant = await get(idOrName)
    const { insert, issued } = await newToken(tenant.id, label, expiresAt)
    await insert.run()
    return issued
  }

  async function revokeToken(keyId: string): Promise<TokenView> {
    await db.prepare('UPDATE tokens SET revoked_at = COALESCE(revoked_at, ?) WHERE key_id = ?').bind(now(), keyId).run()
    return getToken(keyId)
  }

  /**
   * A new token in the place of an old one, which works for `graceSeconds` more. It ends when the old one would have; another
   * `expiresAt` (Unix ms) only when it is asked for.
   */
  async function rotateToken(keyId: string, graceSeconds: number, expiresAt?: number): Promise<IssuedToken> {
    const old = await getToken(keyId)
    if (old.revokedAt !== null) {
      throw new RingletError('conflict', 'the token is revoked; create a new one for its tenant')
    }
    const until = expiresAt ?? (old.expiresAt === null ? undefined : Date.parse(old.expiresAt))
    if (until !== undefined && until <= now()) {
      throw new RingletError('conflict', 'the token has expired; give the new one an `expiresAt`', {
        param: 'expiresAt',
      })
    }
    const { insert, issued } = await newToken(old.tenantId, old.label, until)
    const time = now()
    const end =
      graceSeconds === 0
        ? db.prepare('UPDATE tokens SET revoked_at = ? WHERE key_id = ?').bind(time, keyId)
        : db
            .prepare('UPDATE tokens SET expires_at = MIN(COALESCE(expires_at, ?1), ?1) WHERE key_id = ?2')
            .bind(time + graceSeconds * 1000, keyId)
    await db.batch([insert, end])
    return issued
  }

  async function getToken(keyId: string): Promise<TokenView> {
    const row = await db.prepare('SELECT * FROM tokens WHERE key_id = ?').bind(keyId).first<TokenRow>()
    if (row === null) {
      throw new RingletError('route_unknown', 'there is no such token')
    }
    return toTokenView(row)
  }

  async function newToken(tenantId: string, label: string, expiresAt: number | undefined) {
    const { keyId, text } = createToken()
    const row: TokenRow = {
      key_id: keyId,
      tenant_id: tenantId,
      label,
      created_at: now(),
      expires_at: expiresAt ?? null,
      revoked_at: null,
    }
    const insert = db
      .prepare(
        'INSERT INTO tokens (key_id, tenant_id, token_hash, label, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)',
      )
      .bind(keyId, tenantId, toHex(await hashToken(text)), label, row.created_at, row.expires_at)
    return { insert, issued: { ...toTokenView(row), token: text } }
  }

  return { findToken, create, list, get, update, listTokens, issueToken, revokeToken, rotateToken }
}

export type TenantStore = ReturnType<typeof createTenantStore>

function changed(tenant: TenantView, change: UpdateTenant): TenantView {
  const limits = Object.entries({ ...tenant.limits, ...change.limits }).filter(([, value]) => value !== null)
  return {
    ...tenant,
    scopes: scopesSchema.parse({ ...tenant.scopes, ...change.scopes }),
    limits: limitsSchema.parse(Object.fromEntries(limits)),
    disabled: change.disabled ?? tenant.disabled,
  }
}

function toTenant(row: TenantRow): TenantView {
  return {
    id: row.id,
    name: row.name,
    scopes: scopesSchema.parse(JSON.parse(row.scopes)),
    limits: limitsSchema.parse(JSON.parse(row.limits)),
    disabled: row.disabled !== 0,
    createdAt: toIso(row.created_at),
  }
}

function toTokenView(row: TokenRow): TokenView {
  return {
    keyId: row.key_id,
    tenantId: row.tenant_id,
    label: row.label,
    createdAt: toIso(row.created_at),
    expiresAt: row.expires_at === null ? null : toIso(row.expires_at),
    revokedAt: row.revoked_at === null ? null : toIso(row.revoked_at),
  }
}

function toIso(unixMs: number): string {
  return new Date(unixMs).toISOString()
}
