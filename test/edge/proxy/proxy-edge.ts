/** The proxy worker in real workerd, with stub nodes that have joined it; and what a client does with them. */

import { build } from 'esbuild'
import { Miniflare } from 'miniflare'
import type { ForwardUsage } from '../../../edge/proxy/forward-types.ts'
import type { PlacementExplanation } from '../../../edge/routing/explain.ts'
import type { AdapterSelection } from '../../../shared/adapter-ref.ts'
import { type StubNode, type StubNodeOptions, startStubNode } from '../../support/stub-node.ts'

const SECRET = 'test-secret-of-enough-length'
const ticketKeys = { keys: [{ id: 't1', secret: SECRET }] }
export const joinKeys = { keys: [{ id: 'j1', secret: SECRET }] }

export interface SeenNode {
  nodeId: string
  url: string
  draining: boolean
  damped: boolean
  inFlight: number
  resident: number
}

export interface AskOptions {
  prompt?: string
  adapter?: string
  stream?: boolean
  choices?: number
  errorStyle?: 'lorax' | 'openai'
  requestId?: string
  lastEventId?: string
  endAfterMs?: number
  signal?: AbortSignal
}

export interface ProxyEdge {
  url: string
  /** A stub node that has joined: the edge's snapshot has it. */
  addNode: (options: Partial<StubNodeOptions> & { nodeId: string; joinSecretOnly?: boolean }) => Promise<StubNode>
  ask: (options?: AskOptions) => Promise<Response>
  explain: (adapter: string) => Promise<PlacementExplanation>
  nodes: () => Promise<SeenNode[]>
  /** Asks for the nodes until they are as expected: the edge's picture is a second or two old. */
  waitForNodes: (expected: (nodes: SeenNode[]) => boolean) => Promise<void>
  ended: () => Promise<ForwardUsage[]>
  waitForEnded: (count: number) => Promise<ForwardUsage[]>
  logged: () => Promise<{ event: string; [field: string]: string | number | boolean }[]>
  drain: (nodeId: string, draining: boolean) => Promise<boolean>
  stop: () => Promise<void>
}

export async function startProxyEdge(timings: Record<string, number> = {}, shards = 2): Promise<ProxyEdge> {
  const bundle = await build({
    entryPoints: [new URL('./proxy-worker.ts', import.meta.url).pathname],
    bundle: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    external: ['cloudflare:*', 'node:*'],
  })
  const miniflare = new Miniflare({
    modules: true,
    script: bundle.outputFiles[0]!.text,
    compatibilityDate: '2026-04-01',
    compatibilityFlags: ['enable_request_signal'],
    durableObjects: { FLEET: { className: 'FleetRegistry', useSQLite: true } },
    bindings: { SHARDS: String(shards), SECRET, TIMINGS: JSON.stringify(timings) },
    cf: false,
  })
  const url = (await miniflare.ready).origin
  const nodes: StubNode[] = []
  const get = async <T>(path: string): Promise<T> => (await (await fetch(url + path)).json()) as T
  const post = (path: string, body: unknown, signal?: AbortSignal) =>
    fetch(url + path, { method: 'POST', body: JSON.stringify(body), ...(signal === undefined ? {} : { signal }) })

  const edge: ProxyEdge = {
    url,
    addNode: async ({ joinSecretOnly = false, ...options }) => {
      const keys = joinSecretOnly ? {} : { ticketKeys }
      const node = await startStubNode({ ...keys, joinKeys, edgeUrl: url, heartbeatMs: 250, ...options })
      nodes.push(node)
      await node.heartbeats?.joined
      await edge.waitForNodes((seen) => seen.some((other) => other.nodeId === node.nodeId && other.url === node.url))
      return node
    },
    ask: ({ prompt = 'hello', adapter, stream = true, choices = 1, signal, ...asked } = {}) =>
      post(
        '/forward',
        {
          stream,
          path: stream ? '/generate_stream' : '/generate',
          body: JSON.stringify({ inputs: prompt, stream, n: choices }),
          selection: selectionOf(adapter),
          placementKey: adapter === undefined ? 'base' : `local:${adapter}`,
          ...asked,
        },
        signal,
      ),
    explain: async (adapter) =>
      (await (
        await post('/explain', { selection: selectionOf(adapter), placementKey: `local:${adapter}` })
      ).json()) as PlacementExplanation,
    nodes: () => get('/nodes'),
    waitForNodes: async (expected) => {
      while (!expected(await edge.nodes())) {
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    },
    ended: () => get('/ended'),
    waitForEnded: async (count) => {
      for (;;) {
        const ended = await edge.ended()
        if (ended.length >= count) {
          return ended
        }
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    },
    logged: () => get('/logged'),
    drain: async (nodeId, draining) =>
      (await (await fetch(`${url}/drain/${nodeId}?draining=${draining}`, { method: 'POST' })).json()) as boolean,
    stop: async () => {
      await Promise.all(nodes.map((node) => node.heartbeats?.leave()))
      await Promise.all(nodes.map((node) => node.kill().catch(() => undefined))) // those that a test killed are gone
      await miniflare.dispose()
    },
  }
  return edge
}

function selectionOf(adapter: string | undefined): AdapterSelection {
  return adapter === undefined ? { kind: 'base' } : { kind: 'single', ref: { source: 'local', id: adapter } }
}
