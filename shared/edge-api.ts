/** The edge's admin API as its callers see it: what a tenant is, and the bodies of `/admin/*`. */

import { z } from 'zod'
import { ADAPTER_SOURCES, MAX_ADAPTER_ID_LENGTH } from './adapter-ref.ts'

/** Tenant names and aliases: one path segment, no capitals, so that two never look alike. */
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/
const NAME_RULE = 'starts with a letter or digit and has at most 64 of a-z 0-9 . _ -'

const pattern = z.string().min(1).max(MAX_ADAPTER_ID_LENGTH)
const bucket = z.string().min(1).max(255)

/** What a tenant may ask for. `*` in a pattern stands for any text, `/` included. */
export const scopesSchema = z.strictObject({
  /** Homes whose adapters may be named, by alias too. */
  sources: z.array(z.enum(ADAPTER_SOURCES)).default([...ADAPTER_SOURCES]),
  /** Patterns of adapter ids, `acme/*`; with a source in front, `hub:acme/*`, for that source alone. */
  adapters: z.array(pattern).max(256).default(['*']),
  /** Patterns of base model names. */
  models: z.array(pattern).max(64).default(['*']),
  /** S3 buckets whose adapters may be named; `*` is any. None unless the operator says so. */
  buckets: z.array(bucket).max(256).default([]),
  /** May its tokens call `/admin`? */
  admin: z.boolean().default(false),
})
export type Scopes = z.infer<typeof scopesSchema>

const limit = z.number().int().positive().max(Number.MAX_SAFE_INTEGER)

/** A limit that is absent does not limit. */
export const limitsSchema = z.strictObject({
  requestsPerMinute: limit.optional(),
  /** Prompt and generated tokens together. */
  tokensPerMinute: limit.optional(),
  /** Requests in flight at once. */
  concurrentRequests: limit.optional(),
  /** Prompt and generated tokens together, a calendar month in UTC. */
  tokensPerMonth: limit.optional(),
  /** Most tokens that one request may generate. */
  maxNewTokens: limit.optional(),
})
export type Limits = z.infer<typeof limitsSchema>

export const tenantNameSchema = z.string().regex(NAME, NAME_RULE)
export const aliasNameSchema = z.string().regex(NAME, NAME_RULE)

export const createTenantSchema = z.strictObject({
  name: tenantNameSchema,
  scopes: scopesSchema.prefault({}),
  limits: limitsSchema.prefault({}),
})
export type CreateTenant = z.input<typeof createTenantSchema>

/** Fields that are present replace the tenant's; `null` in a limit takes the limit away. */
export const updateTenantSchema = z.strictObject({
  scopes: z
    .strictObject({
      sources: z.array(z.enum(ADAPTER_SOURCES)).optional(),
      adapters: z.array(pattern).max(256).optional(),
      models: z.array(pattern).max(64).optional(),
      buckets: z.array(bucket).max(256).optional(),
      admin: z.boolean().optional(),
    })
    .optional(),
  limits: z
    .strictObject({
      requestsPerMinute: limit.nullable().optional(),
      tokensPerMinute: limit.nullable().optional(),
      concurrentRequests: limit.nullable().optional(),
      tokensPerMonth: limit.nullable().optional(),
      maxNewTokens: limit.nullable().optional(),
    })
    .optional(),
  /** A disabled tenant's tokens are refused like revoked ones. */
  disabled: z.boolean().optional(),
})
export type UpdateTenant = z.infer<typeof updateTenantSchema>

export const createTokenSchema = z.strictObject({
  label: z.string().max(128).optional(),
  /** ISO 8601; the token is refused from then on. */
  expiresAt: z.iso.datetime().optional(),
})
export const rotateTokenSchema = z.strictObject({
  /** How long the old token still works. */
  graceSeconds: z
    .number()
    .int()
    .min(0)
    .max(30 * 86_400)
    .default(0),
  /** ISO 8601; absent: the new token expires when the old one would have. */
  expiresAt: z.iso.datetime().optional(),
})

export const setAliasSchema = z.strictObject({
  source: z.enum(ADAPTER_SOURCES),
  id: z.string().min(1).max(MAX_ADAPTER_ID_LENGTH),
  revision: z.string().min(1).max(256).optional(),
  /** Compare and swap: the generation that the caller saw; 0 for an alias that must not exist yet. */
  ifGeneration: z.number().int().min(0).optional(),
})
export type SetAlias = z.infer<typeof setAliasSchema>

export const drainNodeSchema = z.strictObject({ draining: z.boolean().default(true) })

export const adapterActionSchema = z.strictObject({
  /** An alias, or a name with its source: `hub:org/name@rev`, `local:orders-json`. */
  adapter: z.string().min(1).max(MAX_ADAPTER_ID_LENGTH),
  /** Only this node; all nodes without it (prefetch: the node that placement would take). */
  node: z.string().max(128).optional(),
  /** The token for the adapter's home. */
  token: z.string().max(4096).optional(),
})
export type AdapterAction = z.infer<typeof adapterActionSchema>
export const ADAPTER_ACTIONS = ['prefetch', 'pin', 'unpin', 'unload'] as const

export interface TenantView {
  id: string
  name: string
  scopes: Scopes
  limits: Limits
  disabled: boolean
  createdAt: string
}

/** A token as it may be shown: never its secret. */
export interface TokenView {
  keyId: string
  tenantId: string
  label: string
  createdAt: string
  expiresAt: string | null
  revokedAt: string | null
}

/** The one time that a token's text is told. */
export interface IssuedToken extends TokenView {
  token: string
}

/** A new tenant comes with its first token. */
export interface CreatedTenant extends TenantView {
  token: IssuedToken
}

export interface AliasView {
  alias: string
  source: (typeof ADAPTER_SOURCES)[number]
  id: string
  revision: string | null
  /** Grows by one at each change. */
  generation: number
  updatedAt: string
}

export interface UsageRow {
  tenant: string
  /** `source:id`, `base`, or a merge's refs joined by ` + `. */
  adapter: string
  /** UTC, `2026-11-23`. */
  day: string
  requests: number
  promptTokens: number
  generatedTokens: number
}

/** Of some tenants, in the order of their names; `next` goes into `after` for those behind them. */
export interface UsagePage {
  from: string
  to: string
  items: UsageRow[]
  next: string | null
}

/** What one node answered to an admin call. */
export interface NodeAnswer {
  node: string
  status: number
  body: unknown
}
