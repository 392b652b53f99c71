/** `npm run ringlet -- COMMAND`: the operator's and the tenant's tools. Each command is a file of its own, loaded when it is asked for. */

import { defineCommand, runMain } from 'citty'

const ringlet = defineCommand({
  meta: { name: 'ringlet', description: 'Tools for a Ringlet endpoint and its adapters' },
  subCommands: {
    tenant: () => import('./tenant-command.ts').then((file) => file.tenantCommand),
    alias: () => import('./alias-command.ts').then((file) => file.aliasCommand),
    nodes: () => import('./nodes-command.ts').then((file) => file.nodesCommand),
    usage: () => import('./usage-command.ts').then((file) => file.usageCommand),
    lint: () => import('./lint-command.ts').then((file) => file.lintCommand),
    chat: () => import('./chat-command.ts').then((file) => file.chatCommand),
  },
})

await runMain(ringlet)
