/** `ringlet alias …`: the operator's names for adapters. */

import { defineCommand } from 'citty'
import { formatAdapterRef, parseAdapterName } from '../../shared/adapter-ref.ts'
import type { AliasView } from '../../shared/edge-api.ts'
import { given } from './command-args.ts'
import { adminCommand } from './edge-access.ts'
import { printTable } from './print-table.ts'

const aliasArg = { alias: { type: 'positional', required: true, description: 'the name, without a slash' } } as const
const generationArg = {
  'if-generation': { type: 'string', description: 'only if the alias is at this generation (0: only if it is new)' },
} as const

const set = adminCommand({
  name: 'set',
  description: 'Point an alias at an adapter',
  args: {
    ...aliasArg,
    adapter: { type: 'positional', required: true, description: 'local:NAME, hub:ORG/NAME@REV, s3://BUCKET/PREFIX, …' },
    ...generationArg,
  },
  async run(args, admin) {
    const target = parseAdapterName(args.adapter)
    if (target.kind === 'alias') {
      throw new Error(
        `'${args.adapter}' names no source; write local:${args.adapter}, hub:org/name or s3://bucket/prefix`,
      )
    }
    const alias = await admin.call<AliasView>('PUT', `/aliases/${encodeURIComponent(args.alias)}`, {
      ...target.ref,
      ...given({ ifGeneration: toGeneration(args['if-generation']) }),
    })
    console.log(args.json ? JSON.stringify(alias, null, 2) : `${describe(alias)} (generation ${alias.generation})`)
  },
})

const list = adminCommand({
  name: 'list',
  description: 'List aliases',
  args: {},
  async run(args, admin) {
    const items: AliasView[] = []
    for (let after: string | null = ''; after !== null; ) {
      const page: { items: AliasView[]; next: string | null } = await admin.call(
        'GET',
        `/aliases?after=${encodeURIComponent(after)}`,
      )
      items.push(...page.items)
      after = page.next
    }
    if (args.json) {
      console.log(JSON.stringify(items, null, 2))
    } else {
      const rows = items.map((alias) => [alias.alias, targetOf(alias), alias.generation, alias.updatedAt])
      printTable(['ALIAS', 'ADAPTER', 'GENERATION', 'CHANGED'], rows)
    }
  },
})

const remove = adminCommand({
  name: 'remove',
  description: 'Remove an alias',
  args: { ...aliasArg, ...generationArg },
  async run(args, admin) {
    const generation = toGeneration(args['if-generation'])
    const query = generation === undefined ? '' : `?ifGeneration=${generation}`
    await admin.call('DELETE', `/aliases/${encodeURIComponent(args.alias)}${query}`)
    console.log(`removed ${args.alias}`)
  },
})

export const aliasCommand = defineCommand({
  meta: { name: 'alias', description: 'Names that stand for adapters' },
  subCommands: { set, list, remove },
})

function toGeneration(text: string | undefined): number | undefined {
  if (text === undefined) {
    return undefined
  }
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new Error(`--if-generation is a whole number; given: ${text}`)
  }
  return value
}

function describe(alias: AliasView): string {
  return `${alias.alias} → ${targetOf(alias)}`
}

function targetOf({ source, id, revision }: AliasView): string {
  return formatAdapterRef({ source, id, ...(revision === null ? {} : { revision }) })
}
