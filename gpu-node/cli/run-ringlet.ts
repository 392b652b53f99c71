/** The commands of `ringlet`, found by their words, run, and their failures put into one line. */

import type { CommandDef, SubCommandsDef } from 'citty'

/** Returns the exit status. */
export async function runRinglet(words: readonly string[]): Promise<number> {
  plainOffTerminals()
  // Only now: citty decides about colours when it is loaded.
  const { defineCommand, renderUsage, runCommand } = await import('citty')
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
  const { command, path } = await find(ringlet, words)
  const name = path.join(' ')
  if (words.includes('--help') || words.includes('-h') || words.length === 0) {
    console.log(await renderUsage(command, { meta: { name: path.slice(0, -1).join(' ') } }))
    return 0
  }
  try {
    await runCommand(ringlet, { rawArgs: [...words] })
    return Number(process.exitCode ?? 0)
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    // citty's own: an unknown command, a missing argument.
    const hint = error instanceof Error && error.name === 'CLIError' ? ` (${name} --help tells more)` : ''
    console.error(`ringlet: ${message}${hint}`)
    return 1
  }
}

/** The command that the words name, and the words that named it. */
async function find(root: CommandDef, words: readonly string[]): Promise<{ command: CommandDef; path: string[] }> {
  let command = root
  const path = ['ringlet']
  for (const word of words) {
    const commands: SubCommandsDef = (await resolved(command.subCommands)) ?? {}
    const next = Object.hasOwn(commands, word) ? await resolved(commands[word]) : undefined
    if (next === undefined) {
      break
    }
    command = next
    path.push(word)
  }
  return { command, path }
}

async function resolved<T>(value: T | Promise<T> | (() => T | Promise<T>) | undefined): Promise<T | undefined> {
  return typeof value === 'function' ? await (value as () => T | Promise<T>)() : await value
}

/** Colours are for terminals: a file or a pipe gets plain text. */
function plainOffTerminals(): void {
  if (!process.stdout.isTTY) {
    process.env.NO_COLOR = '1'
  }
}
