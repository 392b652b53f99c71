/** A node's process: reads its settings, builds the parts, listens, joins the fleet, drains on SIGTERM. */

import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { type Logger, pino } from 'pino'
import { buildNode } from './build-node.ts'
import { localKeysFile, NODE_USAGE, type NodeConfig, readConfig, silenceSdkWarning } from './config.ts'
import { drainNode } from './fleet/drain.ts'
import { type Heartbeats, startHeartbeats } from './fleet/heartbeats.ts'
import { createReceivedKeys } from './fleet/received-keys.ts'
import { createApp } from './http/app.ts'
import { type GenerationTracer, openTraceExport } from './http/generation-trace.ts'
import { listen } from './http/listen.ts'
import { createLoadDisplay } from './load-progress.ts'
import { type LocalKeys, readLocalKeys } from './local-keys.ts'
import { keepAllocatorSmall } from './ort/system-memory.ts'
import { PACKAGE_FILE } from './package-root.ts'

/** Replies that are complete may still be on their way to slow readers. */
const LAST_WORDS_MS = 5_000

/** Without a fleet there is nobody to tell. */
const NO_FLEET: Pick<Heartbeats, 'announceDrain' | 'leave'> = { announceDrain: async () => {}, leave: async () => {} }

async function main(): Promise<void> {
  const config = readConfig(process.argv.slice(2), availableParallelism())
  if (config === 'help') {
    console.log(NODE_USAGE)
    return
  }
  await run(config)
}

async function run(config: NodeConfig): Promise<void> {
  keepAllocatorSmall()
  silenceSdkWarning()
  const log = createLog(config)
  const received = receivesKeys(config) ? createReceivedKeys() : undefined
  const { ticketKeys, joinKeys } = await keysOf({ ...config, ticketKeys: received ?? config.ticketKeys })
  const server = await listen(config.host, config.port)
  const stop = new AbortController()
  const hurry = new AbortController()
  const display = createLoadDisplay(process.stderr)
  const tracer = await openTracer(config)
  const node = await buildNode({
    config,
    ticketKeys,
    version: packageVersion(),
    clock: { wall: Date.now, steady: () => performance.timeOrigin + performance.now() },
    log,
    tracer,
    onProgress: display.show,
    onDrain: () => stop.abort(),
  }).finally(display.done)
  const app = createApp(node.context)
  server.serve((request) => app.fetch(request))

  const heartbeats =
    config.edgeUrl === undefined
      ? undefined
      : startHeartbeats({
          edgeUrl: config.edgeUrl,
          joinKeys,
          describe: () => node.describe(server.url),
          fetch,
          now: Date.now,
          log: (event, fields) => log[event === 'fleet_unreachable' ? 'warn' : 'info'](fields, event),
          ...(received === undefined ? {} : { ticketKeys: received }),
        })
  // Told on stdout for whoever supervises the process.
  const { baseModel, dtype } = node.context.identity
  console.log(`node ready ${server.url} (${baseModel}, ${dtype}, ${config.nodeId})`)

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => (stop.signal.aborted ? hurry.abort() : stop.abort()))
  }
  // The supervisor died.
  process.once('disconnect', () => {
    hurry.abort()
    stop.abort()
  })
  const died = await Promise.race([node.engine.ended, aborted(stop.signal)])
  if (died instanceof Error) {
    log.fatal({ err: died }, 'the engine died')
    await heartbeats?.leave()
    process.exit(1)
  }
  const { finished } = await drainNode({
    heartbeats: heartbeats ?? NO_FLEET,
    inFlight: () => node.engine.inFlight(),
    stopAccepting: node.stopAccepting,
    whenIdle: () => node.engine.drain(),
    hurry: hurry.signal,
  })
  log.info({ finished }, 'drained')
  await node.close()
  // A collector that does not answer holds nobody up.
  await tracer?.close().catch((error: unknown) => log.warn({ err: error }, 'traces_lost'))
  await server.close(finished ? LAST_WORDS_MS : 0)
  process.exit(0)
}

function openTracer({ traceEndpoint, nodeId }: NodeConfig): Promise<GenerationTracer> | undefined {
  return traceEndpoint === undefined
    ? undefined
    : openTraceExport({ endpoint: traceEndpoint, nodeId, version: packageVersion() })
}

/** Lines that read like the edge's: times in ISO 8601, levels by name. */
function createLog({ logLevel, nodeId }: NodeConfig): Logger {
  const formatters = { level: (level: string) => ({ level }) }
  const timestamp = pino.stdTimeFunctions.isoTime
  return pino({ level: logLevel, base: { node: nodeId }, formatters, timestamp }, pino.destination(2))
}

/** Whoever knows the join secret and no ticket keys gets these from the edge. */
function receivesKeys({ edgeUrl, joinKeys, ticketKeys }: NodeConfig): boolean {
  return edgeUrl !== undefined && joinKeys !== undefined && ticketKeys === undefined
}

async function keysOf({ ticketKeys, joinKeys, stateDir }: NodeConfig): Promise<LocalKeys> {
  if (ticketKeys !== undefined && joinKeys !== undefined) {
    return { ticketKeys, joinKeys }
  }
  const local = await readLocalKeys(localKeysFile(stateDir))
  return { ticketKeys: ticketKeys ?? local.ticketKeys, joinKeys: joinKeys ?? local.joinKeys }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve()
    }
    signal.addEventListener('abort', () => resolve())
  })
}

function packageVersion(): string {
  const text = readFileSync(PACKAGE_FILE, 'utf8')
  return (JSON.parse(text) as { version: string }).version
}

main().catch((error: unknown) => {
  // One line: what is wrong and with what.
  console.error(error instanceof Error ? error.message : String(error))
  process.exit(1)
})
