/** The options of `npm start`, read from its arguments. */

import { existsSync, readdirSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'

export interface StartOptions {
  port: number
  nodes: number
  /** A checkpoint directory or a hub id. */
  model: string
  adapterRoots: string[]
  stateDir: string
  /** Handed on to every node as they are: `--dtype`, `--threads`, … */
  nodeArguments: string[]
}

const repository = resolve(import.meta.dirname, '../..')
export const DEMO_MODEL = join(repository, 'models/demo/base')
const DEMO_ADAPTERS = join(repository, 'models/demo/adapters')

export const START_USAGE = `npm start -- [options]
  --port N            where the edge listens on 127.0.0.1 (8787)
  --nodes N           how many gpu-nodes (2)
  --model DIR|ID      base model: a checkpoint directory or a hub id (the demo model)
  --adapter-root DIR  folder of local adapters; may be given several times (the demo's)
  --state DIR         secrets, tenants, caches and dev.json (.ringlet)
  --dtype T           f32, int8 or int4 (f16 on GPUs), for every node
  --device D          cpu, cuda, cuda:N or auto, for every node
  --threads N         of each node's engine
  --preload REF       an adapter that every node loads and pins at its start, e.g. local:pirate; may be given several times
  --adapter-ram BYTES, --adapter-disk BYTES, --max-engine-adapters N, --max-sequences N, --max-positions N
                      for every node; npm run dev:node -- --help tells more`

/** Handed on to every node as they are. */
const NODE_OPTIONS = [
  'dtype',
  'device',
  'threads',
  'adapter-ram',
  'adapter-disk',
  'max-engine-adapters',
  'max-sequences',
  'max-positions',
] as const

/** Throws an error whose message is for the user. */
export function parseStartOptions(argv: readonly string[]): StartOptions | 'help' {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      port: { type: 'string', default: '8787' },
      nodes: { type: 'string', default: '2' },
      model: { type: 'string' },
      'adapter-root': { type: 'string', multiple: true },
      state: { type: 'string', default: '.ringlet' },
      ...(Object.fromEntries(NODE_OPTIONS.map((name) => [name, { type: 'string' }])) as Record<
        (typeof NODE_OPTIONS)[number],
        { type: 'string' }
      >),
      preload: { type: 'string', multiple: true },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    return 'help'
  }
  const nodeArguments = NODE_OPTIONS.flatMap((name) => {
    const value = values[name]
    return value === undefined ? [] : [`--${name}`, value]
  })
  nodeArguments.push(...(values.preload ?? []).flatMap((ref) => ['--preload', ref]))
  // Another model has adapters of its own: the demo's would be refused one by one.
  const roots = values['adapter-root'] ?? (values.model === undefined ? [DEMO_ADAPTERS] : [])
  return {
    port: wholeNumber('--port', values.port, 0, 65_535),
    nodes: wholeNumber('--nodes', values.nodes, 1, 64),
    model: values.model ?? DEMO_MODEL,
    adapterRoots: roots.map(directory),
    stateDir: resolve(values.state),
    nodeArguments,
  }
}

/** The adapters right below the roots: folder names, which are their local ids too. */
export function localAdapters(roots: readonly string[]): string[] {
  return roots.flatMap((root) =>
    readdirSync(root).filter((name) => existsSync(join(root, name, 'adapter_config.json'))),
  )
}

function directory(root: string): string {
  const path = resolve(root)
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new Error(`--adapter-root ${root} is no directory`)
  }
  return path
}

function wholeNumber(option: string, text: string, least: number, most: number): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new Error(`${option} is a whole number from ${least} to ${most}; given: ${text}`)
  }
  return value
}
