/** `ringlet tenant …`: tenants, their scopes and limits, and their tokens. */

import { defineCommand } from 'citty'
import type { CreatedTenant, IssuedToken, Limits, Scopes, TenantView, TokenView } from '../../shared/edge-api.ts'
import { given, toLimit, toList } from './command-args.ts'
import { adminCommand } from './edge-access.ts'
import { printTable } from './print-table.ts'

const tenantArg = { tenant: { type: 'positional', required: true, description: 'name or id' } } as const

const settingArgs = {
  sources: { type: 'string', description: 'allowed sources: hub,pbase,s3,local' },
  adapters: { type: 'string', description: "allowed adapter ids, comma-separated patterns: 'acme/*,hub:org/*'" },
  models: { type: 'string', description: 'allowed base models, patterns' },
  buckets: { type: 'string', description: 'allowed S3 buckets' },
  admin: { type: 'boolean', description: 'may use the admin API' },
  rpm: { type: 'string', description: 'requests per minute (none: no limit)' },
  tpm: { type: 'string', description: 'tokens per minute' },
  concurrent: { type: 'string', description: 'requests at once' },
  'tokens-per-month': { type: 'string', description: 'budget of a calendar month' },
  'max-new-tokens': { type: 'string', description: 'most tokens one request may generate' },
} as const

type SettingFlags = { [name in keyof typeof settingArgs]?: string | boolean | undefined }

const create = adminCommand({
  name: 'create',
  description: 'Create a tenant and print its first token',
  args: { ...tenantArg, ...settingArgs },
  async run(args, admin) {
    const { scopes, limits } = toSettings(args)
    const withoutNone = Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== null))
    const created = await admin.call<CreatedTenant>('POST', '/tenants', {
      name: args.tenant,
      scopes,
      limits: withoutNone,
    })
    if (args.json) {
      printJson(created)
    } else {
      console.log(`tenant ${created.name} (${created.id})`)
      printToken(created.token)
    }
  },
})

const update = adminCommand({
  name: 'update',
  description: 'Change scopes, limits, or whether the tenant may ask at all',
  args: {
    ...tenantArg,
    ...settingArgs,
    disabled: { type: 'boolean', description: 'refuse all its tokens (--no-disabled: again allow)' },
  },
  async run(args, admin) {
    const body = { ...toSettings(args), ...given({ disabled: args.disabled }) }
    printTenant(await admin.call<TenantView>('PATCH', `/tenants/${encodeURIComponent(args.tenant)}`, body))
  },
})

const list = adminCommand({
  name: 'list',
  description: 'List tenants',
  args: {},
  async run(args, admin) {
    const tenants: TenantView[] = []
    for (let after: string | null = ''; after !== null; ) {
      const page: { items: TenantView[]; next: string | null } = await admin.call(
        'GET',
        `/tenants?after=${encodeURIComponent(after)}`,
      )
      tenants.push(...page.items)
      after = page.next
    }
    if (args.json) {
      printJson(tenants)
    } else {
      const rows = tenants.map((tenant) => [
        tenant.name,
        tenant.id,
        tenant.disabled ? 'disabled' : 'active',
        tenant.createdAt,
      ])
      printTable(['NAME', 'ID', 'STATE', 'CREATED'], rows)
    }
  },
})

const show = adminCommand({
  name: 'show',
  description: 'Show a tenant’s scopes and limits',
  args: { ...tenantArg },
  async run(args, admin) {
    printTenant(await admin.call<TenantView>('GET', `/tenants/${encodeURIComponent(args.tenant)}`))
  },
})

const tokens = adminCommand({
  name: 'tokens',
  description: 'List a tenant’s tokens (never their secrets)',
  args: { ...tenantArg },
  async run(args, admin) {
    const { items } = await admin.call<{ items: TokenView[] }>(
      'GET',
      `/tenants/${encodeURIComponent(args.tenant)}/tokens`,
    )
    if (args.json) {
      printJson(items)
    } else {
      const rows = items.map((token) => [token.keyId, stateOf(token), token.createdAt, token.label])
      printTable(['KEY', 'STATE', 'CREATED', 'LABEL'], rows)
    }
  },
})

const issue = adminCommand({
  name: 'issue',
  description: 'Issue another token',
  args: {
    ...tenantArg,
    label: { type: 'string', description: 'what it is for' },
    expires: { type: 'string', description: 'ISO 8601 time from which it is refused' },
  },
  async run(args, admin) {
    const body = given({ label: args.label, expiresAt: args.expires })
    const path = `/tenants/${encodeURIComponent(args.tenant)}/tokens`
    printIssued(await admin.call<IssuedToken>('POST', path, body), args.json)
  },
})

const keyArg = {
  key: { type: 'positional', required: true, description: 'key id: the middle part of rl_KEY_…' },
} as const

const revoke = adminCommand({
  name: 'revoke',
  description: 'Revoke a token; refused everywhere within 5 seconds, live streams end',
  args: { ...keyArg },
  async run(args, admin) {
    const token = await admin.call<TokenView>('POST', `/tokens/${encodeURIComponent(args.key)}/revoke`)
    console.log(`revoked ${token.keyId} at ${token.revokedAt}`)
  },
})

const rotate = adminCommand({
  name: 'rotate',
  description: 'Replace a token by a new one',
  args: {
    ...keyArg,
    grace: { type: 'string', description: 'seconds that the old one still works', default: '0' },
    expires: {
      type: 'string',
      description: 'ISO 8601 time from which the new one is refused (default: as the old one)',
    },
  },
  async run(args, admin) {
    const graceSeconds = Number(args.grace)
    if (!Number.isSafeInteger(graceSeconds) || graceSeconds < 0) {
      throw new Error(`--grace is a whole number of seconds; given: ${args.grace}`)
    }
    const path = `/tokens/${encodeURIComponent(args.key)}/rotate`
    printIssued(
      await admin.call<IssuedToken>('POST', path, given({ graceSeconds, expiresAt: args.expires })),
      args.json,
    )
  },
})

export const tenantCommand = defineCommand({
  meta: { name: 'tenant', description: 'Tenants and their tokens' },
  subCommands: { create, update, list, show, tokens, issue, revoke, rotate },
})

function toSettings(args: SettingFlags): {
  scopes: Partial<Scopes>
  limits: Partial<Record<keyof Limits, number | null>>
} {
  const text = (name: keyof SettingFlags) => {
    const value = args[name]
    return typeof value === 'string' ? value : undefined
  }
  const limit = (name: keyof SettingFlags) => toLimit(name, text(name))
  return {
    scopes: given({
      // The edge checks the names.
      sources: toList(text('sources')) as Scopes['sources'] | undefined,
      adapters: toList(text('adapters')),
      models: toList(text('models')),
      buckets: toList(text('buckets')),
      admin: typeof args.admin === 'boolean' ? args.admin : undefined,
    }) as Partial<Scopes>,
    limits: given({
      requestsPerMinute: limit('rpm'),
      tokensPerMinute: limit('tpm'),
      concurrentRequests: limit('concurrent'),
      tokensPerMonth: limit('tokens-per-month'),
      maxNewTokens: limit('max-new-tokens'),
    }) as Partial<Record<keyof Limits, number | null>>,
  }
}

function stateOf(token: TokenView): string {
  if (token.revokedAt !== null) {
    return 'revoked'
  }
  return token.expiresAt === null ? 'active' : `until ${token.expiresAt}`
}

function printIssued(token: IssuedToken, json: boolean | undefined): void {
  if (json) {
    printJson(token)
  } else {
    printToken(token)
  }
}

function printToken(token: IssuedToken): void {
  console.log(`token  ${token.token}`)
  console.log('It is shown this once; the edge keeps only its hash.')
}

function printTenant(tenant: TenantView): void {
  printJson(tenant)
}

function printJson(value: unknown): void {
  console.log(JSON.stringify(value, null, 2))
}
