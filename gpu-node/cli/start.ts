/**
 * `npm start`: the whole system on this machine. Starts the edge and the nodes, registers the local adapters as aliases,
 * makes a demo tenant, prints how to call it, and keeps all of it running until Ctrl-C or SIGTERM.
 */

import { once } from 'node:events'
import { createWriteStream, mkdirSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { join, relative, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type AdminClient, createAdminClient } from './admin-client.ts'
import { bundleNode, NODE_FLAGS } from './bundle-node.ts'
import { demoTenantToken } from './demo-tenant.ts'
import { type DevJson, type DevSecrets, loadSecrets, readEdgeUrl, writeDevJson } from './dev-state.ts'
import { greeting } from './start-greeting.ts'
import { DEMO_MODEL, localAdapters, parseStartOptions, START_USAGE, type StartOptions } from './start-options.ts'
import { type ChildSpec, createSupervisor, type Supervisor } from './supervise.ts'

const repository = resolve(import.meta.dirname, '../..')
/** What nodes write while all is well. */
const ROUTINE = /^\{"level":"(?:info|debug|trace)"|^loading: /
const READY = /^(?:edge|node) ready (http:\/\/\S+)/
const POLL_MS = 100
/** Checks without an answer before the edge counts as dead though its process lives (workerd may die alone). */
const DEAF_CHECKS = 3
const CHECK_INTERVAL_MS = 2_000
const GRACE_MS = 8_000
const FIRST_NODE = 'node-1'
const QUIET_START_MS = 5_000

interface Fleet {
  supervisor: Supervisor
  /** Where each child serves, by name; a restarted node has another port. */
  urls: Map<string, string>
}

async function main(): Promise<void> {
  const options = parseStartOptions(process.argv.slice(2))
  if (options === 'help') {
    console.log(START_USAGE)
    return
  }
  const secrets = await loadSecrets(options.stateDir)
  await refuseSecondStart(options.stateDir, secrets)
  console.log(`starting the edge and ${options.nodes} node${options.nodes === 1 ? '' : 's'} …`)
  // Chosen here and not by the edge: an edge that is started again must come back where clients know it.
  const port = options.port === 0 ? await freePort() : options.port
  const fleet = startFleet({ ...options, port }, secrets, await bundleNode())
  endOnSignals(fleet.supervisor)
  const edgeUrl = await urlOf(fleet, 'edge')
  const admin = createAdminClient({ edgeUrl, adminToken: secrets.adminToken, fetch })
  // Whoever put a bucket's keys into this environment may use its adapters; tenants made later are allowed none by themselves.
  const hasBucketKeys = Boolean(process.env.AWS_ACCESS_KEY_ID && process.env.AWS_SECRET_ACCESS_KEY)
  const scopes = { buckets: hasBucketKeys ? ['*'] : [] }
  const tenantToken = await demoTenantToken(admin, secrets, options.stateDir, scopes)
  const aliases = localAdapters(options.adapterRoots)
  for (const name of aliases) {
    await admin.call('PUT', `/aliases/${name}`, { source: 'local', id: name })
  }
  const names = nodeNames(options)
  await Promise.all(names.map((name) => urlOf(fleet, name)))
  const baseModel = await untilNodesJoined(admin, fleet, names)
  const state = () => ({ edgeUrl, tenantToken, adminToken: secrets.adminToken, nodes: describeNodes(fleet, names) })
  await writeDevJson(options.stateDir, state())
  console.log(
    greeting({
      ...{ edgeUrl, tenantToken, baseModel, adapters: aliases },
      stateDir: relative('.', options.stateDir),
      isDemo: options.model === DEMO_MODEL,
    }),
  )
  await watch(fleet, options.stateDir, state)
}

/** Two of them would share one database and one set of caches. Whoever takes this state's admin token runs on this state. */
async function refuseSecondStart(stateDir: string, { adminToken }: DevSecrets): Promise<void> {
  const edgeUrl = await readEdgeUrl(stateDir)
  if (edgeUrl === undefined) {
    return
  }
  const runs = await createAdminClient({ edgeUrl, adminToken, fetch })
    .call('GET', '/nodes')
    .then(
      () => true,
      () => false,
    )
  if (runs) {
    throw new Error(
      `npm start runs already on ${relative('.', stateDir)}, at ${edgeUrl}; for another: --state DIR --port N`,
    )
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

function nodeNames({ nodes }: StartOptions): string[] {
  return Array.from({ length: nodes }, (_, index) => `node-${index + 1}`)
}

function startFleet(options: StartOptions, secrets: DevSecrets, nodeFile: string): Fleet {
  const urls = new Map<string, string>()
  const supervisor = createSupervisor({
    log: (line) => console.log(line),
    restartDelayMs: (restarts) => Math.min(500 * 2 ** (restarts - 1), 10_000),
    graceMs: GRACE_MS,
    onFailedStart: (name, lastErrors) => {
      console.error(lastErrors.at(-1) ?? `${name} ended before it was ready; see ${logFile(options, name)}`)
      void supervisor.stop().then(() => process.exit(1))
    },
  })
  const env = {
    ...process.env,
    RINGLET_ADMIN_TOKEN: secrets.adminToken,
    RINGLET_TICKET_KEYS: `local:${secrets.ticketSecret}`,
    RINGLET_JOIN_KEYS: `local:${secrets.joinSecret}`,
    RINGLET_ROUTING_SEED: secrets.routingSeed,
    RINGLET_SALT_SECRET: secrets.saltSecret,
  }
  const start = (name: string, argv: string[]) => supervisor.start(childSpec(options, urls, name, argv, env))
  const edgeFile = join(repository, 'edge/dev.ts')
  start('edge', ['--import', 'tsx', edgeFile, '--port', String(options.port), '--state', options.stateDir])
  // Nodes join by themselves once the edge answers, so all load at the same time.
  void urlOf({ supervisor, urls }, 'edge').then((edgeUrl) => {
    for (const name of nodeNames(options)) {
      start(name, [...NODE_FLAGS, nodeFile, ...nodeArguments(options, name, edgeUrl)])
    }
  })
  return { supervisor, urls }
}

function nodeArguments(options: StartOptions, name: string, edgeUrl: string): string[] {
  return [
    ...['--port', '0', '--node-id', name, '--edge-url', edgeUrl, '--model', options.model],
    ...['--state', join(options.stateDir, name)],
    ...options.adapterRoots.flatMap((root) => ['--adapter-root', root]),
    ...options.nodeArguments,
  ]
}

function childSpec(
  options: StartOptions,
  urls: Map<string, string>,
  name: string,
  argv: string[],
  env: NodeJS.ProcessEnv,
): ChildSpec {
  mkdirSync(join(options.stateDir, 'logs'), { recursive: true })
  const log = createWriteStream(logFile(options, name))
  const startedAt = performance.now()
  return {
    name,
    argv,
    env,
    isReady: (line) => READY.test(line),
    isTrouble: (line) => !ROUTINE.test(line),
    onLine: (line) => {
      log.write(`${line}\n`)
      // What is quick needs no words; a model that is fetched, or big, does.
      const isSlow = !urls.has(name) && performance.now() - startedAt > QUIET_START_MS
      if (name === FIRST_NODE && isSlow && line.startsWith('loading: ')) {
        console.log(line)
      }
      const url = READY.exec(line)?.[1]
      if (url !== undefined) {
        urls.set(name, url)
      }
    },
  }
}

function logFile(options: StartOptions, name: string): string {
  return join(options.stateDir, 'logs', `${name}.log`)
}

async function urlOf(fleet: Fleet, name: string): Promise<string> {
  for (;;) {
    const url = fleet.urls.get(name)
    if (url !== undefined) {
      return url
    }
    await sleep(POLL_MS)
  }
}

/** The base model's name, once all nodes are in the fleet. */
async function untilNodesJoined(admin: AdminClient, fleet: Fleet, names: readonly string[]): Promise<string> {
  for (;;) {
    const { items } = await admin.call<{ items: { nodeId: string; url: string; baseModel: string }[] }>('GET', '/nodes')
    // By its address too: the fleet remembers the nodes of an earlier start for a while.
    const joined = names.map((name) => items.find((node) => node.nodeId === name && node.url === fleet.urls.get(name)))
    const [first] = joined
    if (first !== undefined && !joined.includes(undefined)) {
      return first.baseModel
    }
    await sleep(POLL_MS)
  }
}

function describeNodes(fleet: Fleet, names: readonly string[]): DevJson['nodes'] {
  return names.map((id) => ({ id, url: fleet.urls.get(id) ?? '', pid: fleet.supervisor.pid(id) ?? 0 }))
}

/** Until the process ends: keeps dev.json true, and ends an edge that no longer answers so that it is started again. */
async function watch(fleet: Fleet, stateDir: string, state: () => DevJson): Promise<void> {
  let written = JSON.stringify(state())
  let deaf = 0
  for (;;) {
    await sleep(CHECK_INTERVAL_MS)
    const now = state()
    if (JSON.stringify(now) !== written) {
      written = JSON.stringify(now)
      await writeDevJson(stateDir, now)
    }
    // Any answer counts: without nodes the edge says 503, and is well.
    const answers = await fetch(`${now.edgeUrl}/health`, { signal: AbortSignal.timeout(CHECK_INTERVAL_MS) }).then(
      () => true,
      () => false,
    )
    deaf = answers ? 0 : deaf + 1
    if (deaf === DEAF_CHECKS) {
      deaf = 0
      fleet.supervisor.kill('edge')
    }
  }
}

function endOnSignals(supervisor: Supervisor): void {
  let asked = false
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (!asked) {
        asked = true
        console.log('\nstopping …')
        void supervisor.stop().then(() => process.exit(0))
      }
    })
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error)
  process.exit(1)
})
