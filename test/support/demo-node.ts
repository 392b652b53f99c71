/** A real node on the demo model, in this process, on a free port; driven with tickets as the edge signs them. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { type BuiltNode, buildNode } from '../../gpu-node/build-node.ts'
import { readConfig } from '../../gpu-node/config.ts'
import { createApp } from '../../gpu-node/http/app.ts'
import { listen } from '../../gpu-node/http/listen.ts'
import type { NodeLimits } from '../../gpu-node/http/node-context.ts'
import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import type { Ticket } from '../../shared/ticket.ts'
import { TEST_KEYS, TEST_NODE, ticketHeaders } from './mint-ticket.ts'

export interface DemoNode {
  url: string
  built: BuiltNode
  /** A request with a fresh ticket. */
  post(path: string, body: unknown, ticket?: Partial<Ticket>, headers?: Record<string, string>): Promise<Response>
  get(path: string, ticket?: Partial<Ticket>): Promise<Response>
  close(): Promise<void>
}

export const adapterNamed = (id: string): AdapterSelection => ({ kind: 'single', ref: { source: 'local', id } })

export async function startDemoNode(
  flags: string[] = [],
  limits: Partial<NodeLimits> = {},
  environment: Record<string, string> = {},
): Promise<DemoNode> {
  const state = await mkdtemp(join(tmpdir(), 'ringlet-node-'))
  const files = ['--model', 'models/demo/base', '--adapter-root', 'models/demo/adapters', '--state', state]
  const sizes = ['--dtype', 'f32', '--threads', '1', '--max-sequences', '8', '--max-positions', '256']
  const config = readConfig([...files, ...sizes, '--node-id', TEST_NODE, ...flags], 1, environment)
  if (config === 'help') {
    throw new Error('unreachable: no --help')
  }
  const built = await buildNode({
    config,
    ticketKeys: TEST_KEYS,
    version: '0.0.0',
    clock: { wall: Date.now, steady: () => performance.timeOrigin + performance.now() },
    log: pino({ level: 'silent' }),
    onProgress: () => {},
    onDrain: () => {},
  })
  Object.assign(built.context.limits, limits)
  const app = createApp(built.context)
  const server = await listen('127.0.0.1', 0)
  server.serve((request) => app.fetch(request))
  const post: DemoNode['post'] = async (path, body, ticket = {}, headers = {}) =>
    fetch(server.url + path, {
      method: 'POST',
      headers: { ...(await ticketHeaders(ticket)), ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    })
  return {
    url: server.url,
    built,
    post,
    get: async (path, ticket = { action: 'info' }) =>
      fetch(server.url + path, { headers: await ticketHeaders(ticket) }),
    close: async () => {
      await built.close()
      await server.close(0)
      await rm(state, { recursive: true, force: true })
    },
  }
}
