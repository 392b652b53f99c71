/** `ringlet nodes …`: the fleet, draining a node, why placement chose one, and the adapters that nodes hold. */

import { defineCommand } from 'citty'
import { ADAPTER_ACTIONS, type NodeAnswer } from '../../shared/edge-api.ts'
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

const list = adminCommand({
  name: 'list',
  description: 'List the nodes of the fleet',
  args: {},
  async run(args, admin) {
    const { items } = await admin.call<{ items: NodeView[] }>('GET', '/nodes')
    if (args.json) {
      console.log(JSON.stringify(items, null, 2))
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
    const explanation = await admin.call('GET', `/explain?adapter=${encodeURIComponent(args.adapter)}`)
    console.log(JSON.stringify(explanation, null, 2))
  },
})

const adapters = adminCommand({
  name: 'adapters',
  description: 'List the adapters that each node holds',
  args: {},
  async run(_, admin) {
    printAnswers((await admin.call<{ nodes: NodeAnswer[] }>('GET', '/adapters')).nodes)
  },
})

const adapterAction = (action: (typeof ADAPTER_ACTIONS)[number]) =>
  adminCommand({
    name: action,
    description: `${action} an adapter on all nodes, or on one`,
    args: {
      adapter: { type: 'positional', required: true, description: 'alias or source:id' },
      node: { type: 'string', description: 'only this node' },
    },
    async run(args, admin) {
      // A token on the command line could be read by others on the machine.
      const token = process.env.RINGLET_ADAPTER_TOKEN
      const body = { adapter: args.adapter, ...given({ node: args.node, token }) }
      const { nodes } = await admin.call<{ nodes: NodeAnswer[] }>('POST', `/adapters/${action}`, body)
      printAnswers(nodes)
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

function printAnswers(nodes: readonly NodeAnswer[]): void {
  console.log(JSON.stringify(nodes, null, 2))
}
