/** How the admin commands find the edge and prove themselves: the environment, or what `npm start` wrote down. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type ArgsDef, type CommandDef, defineCommand, type ParsedArgs } from 'citty'
import { type AdminClient, createAdminClient } from './admin-client.ts'
import { checkArgs } from './command-args.ts'

const accessArgs = {
  edge: { type: 'string', description: 'URL of the edge (RINGLET_EDGE_URL, or the one that npm start runs)' },
  state: { type: 'string', description: 'directory of npm start', default: '.ringlet' },
  json: { type: 'boolean', description: 'print JSON' },
} as const

export interface AdminCommandSpec<Args extends ArgsDef> {
  name: string
  description: string
  args: Args
  run: (args: ParsedArgs<Args & typeof accessArgs>, admin: AdminClient) => Promise<void>
}

/** A command with the arguments that every admin command has, all of them checked before anything is asked. */
export function adminCommand<const Args extends ArgsDef>(spec: AdminCommandSpec<Args>): CommandDef {
  const args = { ...spec.args, ...accessArgs }
  const command = defineCommand({
    meta: { name: spec.name, description: spec.description },
    args,
    async run(context) {
      checkArgs(context.args, args)
      // The same arguments; citty's type of them does not survive the generic spread.
      const parsed = context.args as unknown as ParsedArgs<Args & typeof accessArgs>
      await spec.run(parsed, await openAdmin(parsed as unknown as AccessArgs))
    },
  })
  return command as CommandDef
}

interface AccessArgs {
  edge?: string | undefined
  state: string
}

/** The token comes from RINGLET_ADMIN_TOKEN or dev.json, never from the command line, which others on the machine can read. */
async function openAdmin(args: AccessArgs): Promise<AdminClient> {
  const edgeUrl = args.edge ?? process.env.RINGLET_EDGE_URL
  const adminToken = process.env.RINGLET_ADMIN_TOKEN
  if (edgeUrl !== undefined && adminToken !== undefined) {
    return createAdminClient({ edgeUrl, adminToken, fetch })
  }
  const local = await readLocal(join(args.state, 'dev.json'))
  return createAdminClient({ edgeUrl: edgeUrl ?? local.edgeUrl, adminToken: adminToken ?? local.adminToken, fetch })
}

async function readLocal(file: string): Promise<{ edgeUrl: string; adminToken: string }> {
  try {
    const { edgeUrl, adminToken } = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>
    if (typeof edgeUrl === 'string' && typeof adminToken === 'string') {
      return { edgeUrl, adminToken }
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      throw error
    }
  }
  throw new Error(`no edge is known: set RINGLET_EDGE_URL and RINGLET_ADMIN_TOKEN, or run npm start (${file})`)
}
