/** The tenant of `npm start`: made once, its token kept in the state directory because the edge stores only its hash. */

import type { IssuedToken, Scopes, TenantView, TokenView } from '../../shared/edge-api.ts'
import { type AdminClient, AdminError } from './admin-client.ts'
import { type DevSecrets, saveSecrets } from './dev-state.ts'

const NAME = 'demo'

/** Returns a token that works: the one of an earlier start if the edge still knows it, or a new one. */
export async function demoTenantToken(
  admin: AdminClient,
  secrets: DevSecrets,
  stateDir: string,
  scopes: Partial<Scopes>,
): Promise<string> {
  const token = (await created(admin, scopes)) ?? (await known(admin, secrets, scopes)) ?? (await issued(admin))
  if (token !== secrets.tenantToken) {
    await saveSecrets(stateDir, { ...secrets, tenantToken: token })
  }
  return token
}

async function created(admin: AdminClient, scopes: Partial<Scopes>): Promise<string | undefined> {
  try {
    const made = await admin.call<{ tenant: TenantView; token: IssuedToken }>('POST', '/tenants', {
      name: NAME,
      scopes,
    })
    return made.token.token
  } catch (error) {
    if (error instanceof AdminError && error.code === 'conflict') {
      return undefined
    }
    throw error
  }
}

async function known(admin: AdminClient, { tenantToken }: DevSecrets, scopes: object): Promise<string | undefined> {
  await admin.call('PATCH', `/tenants/${NAME}`, { scopes })
  const { items } = await admin.call<{ items: TokenView[] }>('GET', `/tenants/${NAME}/tokens`)
  const live = items.filter((token) => token.revokedAt === null)
  return tenantToken !== undefined && live.some(({ keyId }) => tenantToken.startsWith(`rl_${keyId}_`))
    ? tenantToken
    : undefined
}

async function issued(admin: AdminClient): Promise<string> {
  return (await admin.call<IssuedToken>('POST', `/tenants/${NAME}/tokens`, { label: 'npm start' })).token
}
