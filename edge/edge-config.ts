/** The Worker's settings: its text bindings, parsed once per isolate. A missing or malformed one stops every request with its name. */

import { z } from 'zod'
import { ADAPTER_SOURCES } from '../shared/adapter-ref.ts'
import type { SigningKeys } from '../shared/hmac.ts'

/** `id:secret,id:secret`: the first signs, all verify. */
const keyList = z.string().transform((text, context): SigningKeys['keys'] => {
  const keys = text.split(',').map((entry) => {
    const colon = entry.indexOf(':')
    return { id: entry.slice(0, Math.max(0, colon)).trim(), secret: entry.slice(colon + 1).trim() }
  })
  if (keys.some((key) => !/^[A-Za-z0-9_-]{1,32}$/.test(key.id) || key.secret.length < 16)) {
    context.addIssue('is a list of id:secret, each secret of at least 16 characters')
    return z.NEVER
  }
  return keys
})

const secret = z.string().min(16)
const wholeNumber = (fallback: number, least: number, most: number) =>
  z.coerce.number().int().min(least).max(most).default(fallback)
/** As the hub's own libraries read their flags. */
const flag = z
  .string()
  .default('')
  .transform((text) => /^(1|on|yes|true)$/i.test(text))

const configSchema = z.object({
  RINGLET_ADMIN_TOKEN: secret.optional(),
  RINGLET_TICKET_KEYS: keyList,
  RINGLET_JOIN_KEYS: keyList,
  RINGLET_ROUTING_SEED: secret,
  RINGLET_SALT_SECRET: secret,
  /** Where an adapter id with `/` and without a source lives. */
  RINGLET_DEFAULT_SOURCE: z.enum(ADAPTER_SOURCES).default('hub'),
  HF_ENDPOINT: z.url().default('https://huggingface.co'),
  PREDIBASE_GATEWAY_ENDPOINT: z.url().default('https://api.app.predibase.com'),
  /** The operator works without the hub: its adapters are authorised by scope alone, nodes serve what they have. */
  HF_HUB_OFFLINE: flag,
  /** How long a home's word that an adapter is public may be used again; 0 asks every time. */
  RINGLET_PUBLIC_TTL_SECONDS: wholeNumber(30, 0, 60),
  /** The same for private adapters, per token; 0 (the default) asks every time. */
  RINGLET_PRIVATE_TTL_SECONDS: wholeNumber(0, 0, 60),
  RINGLET_HOME_TIMEOUT_MS: wholeNumber(5_000, 100, 60_000),
  RINGLET_MAX_BODY_BYTES: wholeNumber(4 * 2 ** 20, 1024, 100 * 2 ** 20),
  /** Durable Objects that hear the nodes; one hears about 250 at ease. */
  RINGLET_FLEET_SHARDS: wholeNumber(1, 1, 64),
  /** Where those are made: a location hint of Cloudflare's, e.g. `weur`; without it near the first node that speaks. */
  RINGLET_FLEET_LOCATION: z
    .enum(['wnam', 'enam', 'sam', 'weur', 'eeur', 'apac', 'oc', 'afr', 'me'])
    .or(z.literal(''))
    .default(''),
  /** `all`: a line for each request and one for what it used; `errors`: only what was refused or failed. */
  RINGLET_ACCESS_LOG: z.enum(['all', 'errors']).default('all'),
  /** Origins that browsers may call from, comma-separated, or `*`; empty: none. */
  RINGLET_CORS_ORIGINS: z
    .string()
    .default('')
    .transform((text) => text.split(',').flatMap((origin) => origin.trim() || [])),
})
export type EdgeConfig = z.output<typeof configSchema>

/** Throws a plain error that names the settings at fault and none of their values. */
export function parseEdgeConfig(bindings: object): EdgeConfig {
  const parsed = configSchema.safeParse(bindings)
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`)
    throw new Error(`the Worker's settings are incomplete: ${faults.join('; ')}`)
  }
  return parsed.data
}
