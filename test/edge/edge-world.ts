/** The real Worker in workerd, with its own database and objects, and stub nodes behind it. */

import { type RunningEdge, startEdge } from '../../edge/dev.ts'
import type { CreatedTenant, CreateTenant, IssuedToken, TenantView } from '../../shared/edge-api.ts'
import { HEARTBEAT_PATH, HEARTBEAT_SIGNATURE_HEADER, type ResidentAdapter } from '../../shared/fleet.ts'
import { signHeartbeat } from '../../shared/heartbeat-signature.ts'
import type { SigningKeys } from '../../shared/hmac.ts'
import { type StubNode, startStubNode } from './stub-node.ts'

export interface EdgeWorld {
  url: string
  vars: Readonly<Record<string, string>>
  nodes: StubNode[]
  database: RunningEdge['database']
  /** Every line that the Worker logged. */
  logs: string[]
  /** Calls the admin API with the admin token. */
  admin: <T>(method: string, path: string, body?: object) => Promise<{ status: number; body: T }>
  createTenant: (input: CreateTenant) => Promise<{ tenant: TenantView; token: IssuedToken }>
  /** Posts JSON as a tenant. */
  post: (path: string, token: string, body: object, headers?: Record<string, string>) => Promise<Response>
  get: (path: string, token: string) => Promise<Response>
  report: (node: StubNode, resident?: ResidentAdapter[]) => Promise<void>
  close: () => Promise<void>
}

export interface WorldOptions {
  nodes?: number
  vars?: Record<string, string>
  stateDir?: string
}

export async function startEdgeWorld(options: WorldOptions = {}): Promise<EdgeWorld> {
  const logs: string[] = []
  const edge = await startEdge({
    port: 0,
    vars: options.vars ?? {},
    onLog: (line) => logs.push(line),
    ...(options.stateDir === undefined ? {} : { stateDir: options.stateDir }),
  })
  const ticketKeys = toKeys(edge.vars.RINGLET_TICKET_KEYS)
  const joinKeys = toKeys(edge.vars.RINGLET_JOIN_KEYS)

  const send = (method: string, path: string, token: string, body?: object, headers: Record<string, string> = {}) =>
    fetch(edge.url + path, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })

  const world: EdgeWorld = {
    url: edge.url,
    vars: edge.vars,
    database: edge.database,
    nodes: [],
    logs,
    async admin<T>(method: string, path: string, body?: object) {
      const response = await send(method, path, edge.vars.RINGLET_ADMIN_TOKEN ?? '', body)
      const text = await response.text()
      return { status: response.status, body: (text === '' ? undefined : JSON.parse(text)) as T }
    },
    async createTenant(input) {
      const { status, body } = await world.admin<CreatedTenant>('POST', '/admin/tenants', input)
      if (status !== 201) {
        throw new Error(`tenant ${input.name}: ${JSON.stringify(body)}`)
      }
      const { token, ...tenant } = body
      return { tenant, token }
    },
    post: (path, token, body, headers) => send('POST', path, token, body, headers),
    get: (path, token) => send('GET', path, token),
    async report(node, resident) {
      const body = JSON.stringify(node.heartbeat(resident))
      const signature = await signHeartbeat(body, joinKeys, Date.now())
      const response = await fetch(edge.url + HEARTBEAT_PATH, {
        method: 'POST',
        headers: { 'content-type': 'application/json', [HEARTBEAT_SIGNATURE_HEADER]: signature },
        body,
      })
      if (response.status !== 200) {
        throw new Error(`heartbeat: ${response.status} ${await response.text()}`)
      }
      await response.body?.cancel()
    },
    async close() {
      clearInterval(timer)
      await Promise.all(world.nodes.map((node) => node.close()))
      await edge.dispose()
    },
  }
  // Nodes join before the first request, so that the isolate's first picture of the fleet has them.
  for (let i = 0; i < (options.nodes ?? 1); i++) {
    const node = await startStubNode(`node-${i}`, ticketKeys)
    world.nodes.push(node)
    await world.report(node)
  }
  const timer = setInterval(() => {
    // After the world's end a heartbeat has nobody to hear it.
    void Promise.all(world.nodes.map((node) => world.report(node))).catch(() => undefined)
  }, 2_000)
  return world
}

function toKeys(list = ''): SigningKeys {
  return {
    keys: list.split(',').map((entry) => {
      const [id = '', secret = ''] = entry.split(':')
      return { id, secret }
    }),
  }
}
