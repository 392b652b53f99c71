/** The Worker in the real runtime (workerd) on this machine, its database and objects in a folder. Runs in Node. */

import { randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import type { D1Database } from '@cloudflare/workers-types'
import { Log, LogLevel, Miniflare } from 'miniflare'
import { applyMigrations } from './apply-migrations.ts'
import { bundleWorker } from './bundle.ts'
import { setV8Flags } from './v8-flags.ts'

export interface StartEdgeOptions {
  /** 0 takes a free one. */
  port: number
  host?: string
  /** Where tenants, aliases and usage stay; without it they are gone when the edge ends. */
  stateDir?: string
  /** The Worker's text bindings (`edge-config.ts`); secrets that are missing are made up, and kept in `stateDir`. */
  vars: Readonly<Record<string, string>>
  /** Each line that the Worker logs. */
  onLog?: (line: string) => void
}

export interface RunningEdge {
  url: string
  /** With the secrets that were made up. */
  vars: Readonly<Record<string, string>>
  /** The Worker's own, for those who test it. */
  database: D1Database
  dispose: () => Promise<void>
}

/** Kept in step with wrangler.toml. */
const COMPATIBILITY_DATE = '2026-04-01'
const COMPATIBILITY_FLAGS = ['enable_request_signal']

setV8Flags()

export async function startEdge(options: StartEdgeOptions): Promise<RunningEdge> {
  const { host = '127.0.0.1', stateDir, onLog = () => {} } = options
  await checkPortFree(host, options.port)
  const vars = { ...(await localSecrets(stateDir)), ...options.vars }
  const persist = stateDir === undefined ? {} : { defaultPersistRoot: resolve(stateDir, 'edge') }
  const runtime = new Miniflare({
    ...persist,
    // Not the way in: requests come through the Worker's own socket, without the hop through Miniflare's.
    host: '127.0.0.1',
    port: 0,
    unsafeDirectSockets: [{ host, port: options.port }],
    modules: [{ type: 'ESModule', path: 'worker.js', contents: await bundleWorker() }],
    compatibilityDate: COMPATIBILITY_DATE,
    compatibilityFlags: COMPATIBILITY_FLAGS,
    d1Databases: { DB: 'ringlet' },
    durableObjects: {
      TENANTS: { className: 'TenantCounters', useSQLite: true },
      FLEET: { className: 'FleetRegistry', useSQLite: true },
    },
    bindings: vars,
    cf: false,
    // Miniflare's own Worker before each outgoing request, which takes a header away that is never there.
    stripCfConnectingIp: false,
    log: new Log(LogLevel.ERROR),
    handleRuntimeStdio: (stdout: Readable, stderr: Readable) => {
      readLines(stdout, onLog)
      readLines(stderr, onLog)
    },
  })
  try {
    await runtime.ready
    const database = await runtime.getD1Database('DB')
    await applyMigrations(database)
    const url = await runtime.unsafeGetDirectURL()
    return { url: url.origin, vars, database, dispose: () => runtime.dispose() }
  } catch (error) {
    await runtime.dispose()
    throw error
  }
}

/** workerd's own words about a busy port come late and as a stack. */
async function checkPortFree(host: string, port: number): Promise<void> {
  if (port === 0) {
    return
  }
  const server = createServer()
  await new Promise<void>((free, busy) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      busy(
        error.code === 'EADDRINUSE' ? new Error(`port ${port} on ${host} is in use; choose another: --port N`) : error,
      )
    })
    server.listen(port, host, () => server.close(() => free()))
  })
}

const SECRETS = ['RINGLET_ADMIN_TOKEN', 'RINGLET_ROUTING_SEED', 'RINGLET_SALT_SECRET'] as const
const KEY_LISTS = ['RINGLET_TICKET_KEYS', 'RINGLET_JOIN_KEYS'] as const

async function localSecrets(stateDir: string | undefined): Promise<Record<string, string>> {
  const fresh = Object.fromEntries([
    ...SECRETS.map((name) => [name, newSecret()]),
    ...KEY_LISTS.map((name) => [name, `k1:${newSecret()}`]),
  ])
  if (stateDir === undefined) {
    return fresh
  }
  const file = join(stateDir, 'edge-secrets.json')
  try {
    return { ...fresh, ...JSON.parse(await readFile(file, 'utf8')) }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      throw error
    }
  }
  await mkdir(stateDir, { recursive: true })
  await writeFile(file, `${JSON.stringify(fresh, null, 2)}\n`, { mode: 0o600 })
  return fresh
}

function newSecret(): string {
  return randomBytes(32).toString('base64url')
}

function readLines(stream: Readable, onLine: (line: string) => void): void {
  createInterface({ input: stream }).on('line', onLine)
}

/** The settings that the Worker reads, from this process's environment. */
function varsFromEnvironment(): Record<string, string> {
  const known = /^(RINGLET_[A-Z_]+|HF_ENDPOINT|HF_HUB_OFFLINE|PREDIBASE_GATEWAY_ENDPOINT)$/
  return Object.fromEntries(
    Object.entries(process.env).flatMap(([name, value]) => (known.test(name) && value ? [[name, value]] : [])),
  )
}

const USAGE = `npm run dev:edge -- [options]
  --port N     where it listens (8787; 0 takes a free port)
  --host ADDR  (127.0.0.1)
  --state DIR  tenants, aliases, usage, and secrets that were made up (.ringlet)
Settings are environment variables: docs/edge.md lists them.`

/** Prints `edge ready URL` when it listens. */
async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '8787' },
      host: { type: 'string', default: '127.0.0.1' },
      state: { type: 'string', default: '.ringlet' },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    console.log(USAGE)
    return
  }
  const port = Number(values.port)
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    throw new Error(`--port is a number from 0 to 65535; given: ${values.port}`)
  }
  const vars = varsFromEnvironment()
  const edge = await startEdge({
    port,
    host: values.host,
    stateDir: values.state,
    vars,
    onLog: (line) => console.log(line),
  })
  console.log(`edge ready ${edge.url}`)
  if (vars.RINGLET_ADMIN_TOKEN === undefined) {
    console.log(`secrets: ${join(values.state, 'edge-secrets.json')}`)
  }
  let ending = false
  const end = () => {
    if (!ending) {
      ending = true
      void edge.dispose().then(() => process.exit(0))
    }
  }
  process.on('SIGINT', end)
  process.on('SIGTERM', end)
  // Started by another process with a channel to it: when that is gone, so is the reason to run.
  process.on('disconnect', end)
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main().catch((error: unknown) => {
    console.error(`edge: ${error instanceof Error ? error.message : String(error)}`)
    process.exit(1)
  })
}
