/** `ringlet nodes …`: the fleet, draining a node, why placement chose one, and the adapters that nodes hold. */

import { defineCommand } from 'citty'
import { ADAPTER_ACTIONS, type NodeAnswer } from '../../shared/edge-api.ts'
import type { AdapterListing } from '../adapters/adapter-store.ts'
import { given } from './command-args.ts'
import { adminCommand } from './edge-access.ts'
import { printTable } from './print-table.ts'

interface NodeView {
  nodeId: string
  url: string
  region: string
  baseModel: string
  inFlight: number
  maxSequences: number
  draining: boolean
}

/** What `GET /admin/explain` tells (`edge/routing/explain.ts`), as far as it is printed. */
interface Explanation {
  placementKey: string
  owners: number
  chosen?: { nodeId: string; reason: string }
  nodes: {
    nodeId: string
    rank?: number
    tier: string
    inFlight: number
    limit: number
    withinBound: boolean
    draining: boolean
    suspect: boolean
  }[]
  outsideRing: { nodeId: string; reason: string }[]
}

/** What a node answers: its adapters, one of them, or why not. */
interface AdapterBody extends Partial<AdapterListing> {
  adapters?: AdapterListing[]
  error?: string
}

/** The metrics' label `adapter` is as many digits of the digest. */
const METRIC_DIGITS = 16

const ACTION_WORDS: Record<(typeof ADAPTER_ACTIONS)[number], string> = {
  prefetch: 'Have an adapter loaded by its owner, or by one node, before it is asked for',
  pin: 'Keep an adapter loaded on all nodes, or on one',
  unpin: 'Let a pinned adapter go when room is needed',
  unload: 'Take an adapter out of memory on all nodes, or on one',
}

const list = adminCommand({
  name: 'list',
  description: 'List the nodes of the fleet',
  args: {},
  async run(args, admin) {
    const { items } = await admin.call<{ items: NodeView[] }>('GET', '/nodes')
    if (args.json) {
      printJson(items)
      return
    }
    const rows = items.map((node) => [
      node.nodeId,
      node.url,
      node.region,
      node.baseModel,
      `${node.inFlight}/${node.maxSequences}`,
      node.draining ? 'draining' : 'up',
    ])
    printTable(['NODE', 'URL', 'REGION', 'BASE', 'IN FLIGHT', 'STATE'], rows)
  },
})

const drainCommand = (name: string, draining: boolean, description: string) =>
  adminCommand({
    name,
    description,
    args: { node: { type: 'positional', required: true, description: 'node id' } },
    async run(args, admin) {
      await admin.call('POST', `/nodes/${encodeURIComponent(args.node)}/drain`, { draining })
      console.log(`${args.node} ${draining ? 'takes no new requests' : 'takes requests again'}`)
    },
  })

const explain = adminCommand({
  name: 'explain',
  description: 'Which node a request for an adapter would get, and why',
  args: { adapter: { type: 'positional', required: true, description: 'alias or source:id' } },
  async run(args, admin) {
    const explanation = await admin.call<Explanation>('GET', `/explain?adapter=${encodeURIComponent(args.adapter)}`)
    if (args.json) {
      printJson(explanation)
      return
    }
    const { chosen, nodes, owners, outsideRing, placementKey } = explanation
    console.log(`${placementKey}: ${chosen === undefined ? 'no node' : `${chosen.nodeId} (${chosen.reason})`}`)
    const rows = nodes.map((node) => [
      node.nodeId,
      node.rank === undefined ? '-' : node.rank <= owners ? `${node.rank}, owner` : node.rank,
      node.tier,
      `${node.inFlight}/${node.limit}`,
      stateWords({ draining: node.draining, 'does not answer': node.suspect, 'over its bound': !node.withinBound }),
    ])
    const outside = outsideRing.map(({ nodeId, reason }) => [nodeId, '-', '-', '-', `outside the ring: ${reason}`])
    printTable(['NODE', 'RANK', 'HAS IT IN', 'IN FLIGHT', 'STATE'], [...rows, ...outside])
  },
})

const adapters = adminCommand({
  name: 'adapters',
  description: 'List the adapters that each node holds',
  args: {},
  async run(args, admin) {
    printAnswers((await admin.call<{ nodes: NodeAnswer[] }>('GET', '/adapters')).nodes, args.json)
  },
})

const adapterAction = (action: (typeof ADAPTER_ACTIONS)[number]) =>
  adminCommand({
    name: action,
    description: ACTION_WORDS[action],
    args: {
      adapter: { type: 'positional', required: true, description: 'alias or source:id' },
      node: { type: 'string', description: 'only this node' },
    },
    async run(args, admin) {
      // A token on the command line could be read by others on the machine.
      const token = process.env.RINGLET_ADAPTER_TOKEN
      const body = { adapter: args.adapter, ...given({ node: args.node, token }) }
      const { nodes } = await admin.call<{ nodes: NodeAnswer[] }>('POST', `/adapters/${action}`, body)
      printAnswers(nodes, args.json)
      if (nodes.some((answer) => answer.status >= 400)) {
        process.exitCode = 1
      }
    },
  })

export const nodesCommand = defineCommand({
  meta: { name: 'nodes', description: 'The fleet and the adapters on it' },
  subCommands: {
    list,
    drain: drainCommand('drain', true, 'Send a node no new requests'),
    undrain: drainCommand('undrain', false, 'Send a drained node requests again'),
    explain,
    adapters,
    ...Object.fromEntries(ADAPTER_ACTIONS.map((action) => [action, adapterAction(action)])),
  },
})

/** A row an adapter, and the words of nodes that refused. */
function printAnswers(nodes: readonly NodeAnswer[], json: boolean | undefined): void {
  if (json) {
    printJson(nodes)
    return
  }
  const rows = nodes.filter(({ status }) => status < 400).flatMap(({ node, body }) => adapterRows(node, body))
  if (rows.length > 0) {
    printTable(['NODE', 'ADAPTER', 'TIER', 'RANK', 'SIZE', 'STATE', 'LAST USED', 'DIGEST'], rows)
  }
  for (const { node, status, body } of nodes.filter((answer) => answer.status >= 400)) {
    console.log(`${node}: ${(body as AdapterBody | null)?.error ?? `answered ${status}`}`)
  }
}

function adapterRows(node: string, body: unknown): string[][] {
  const { adapters, ...one } = (body ?? {}) as AdapterBody
  const listed = adapters ?? (one.digest === undefined ? [] : [one])
  return listed.map((adapter) => [
    node,
    adapter.refs?.join(', ') || (adapter.ref ?? ''),
    adapter.tier ?? '',
    String(adapter.rank ?? ''),
    `${((adapter.bytes ?? 0) / 2 ** 20).toFixed(1)} MiB`,
    stateWords({ pinned: adapter.pinned === true, 'in use': (adapter.leases ?? 0) > 0 }),
    adapter.lastUsed === undefined ? '' : new Date(adapter.lastUsed).toISOString(),
    adapter.digest?.slice(0, METRIC_DIGITS) ?? '',
  ])
}

function stateWords(states: Record<string, boolean>): string {
  return Object.keys(states)
    .filter((state) => states[state])
    .join(', ')
}

function printJson(value: unknown): void {
  console.log(JSON.stringify(value, null, 2))
}
