/** Builds a node's parts from its settings: model, tokenizer, engine, grammars, adapters; and takes them down again. */

import { randomUUID } from 'node:crypto'
import { statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import type { Logger } from 'pino'
import { parseAdapterName } from '../shared/adapter-ref.ts'
import { MAX_RESIDENTS } from '../shared/fleet.ts'
import type { SigningKeys } from '../shared/hmac.ts'
import type { AdapterStore } from './adapters/adapter-store.ts'
import { createHomeFetch } from './adapters/sources/http-home.ts'
import { openAdapterStore } from './adapters/store/open-store.ts'
import type { NodeConfig } from './config.ts'
import type { EngineClient } from './engine/engine-client.ts'
import { DEFAULT_LIMITS, type EngineLimits } from './engine/engine-limits.ts'
import type { NodeDescription } from './fleet/heartbeats.ts'
import { GrammarService } from './grammar/grammar-service.ts'
import { grammarVocabulary } from './grammar/grammar-vocabulary.ts'
import type { GenerationTracer } from './http/generation-trace.ts'
import type { NodeClock, NodeContext, NodeIdentity } from './http/node-context.ts'
import { createNodeMetrics } from './metrics.ts'
import { openCheckpoint } from './model/checkpoint.ts'
import { resolveBase } from './model/resolve-base.ts'
import { type OpenEngine, openEngine } from './open-engine.ts'
import { CallerTextEncoder } from './text/caller-text-encoder.ts'
import { createChatTemplate } from './text/chat-template.ts'
import { ThreadEncoder } from './text/thread-encoder.ts'
import { createTokenizer } from './text/tokenizer.ts'
import { readTokenizerFiles } from './text/tokenizer-files.ts'
import { detectToolFormat, formatMarkers } from './tools/tool-format.ts'

/** Larger bodies than any context needs. */
const MAX_BODY_BYTES = 8 * 2 ** 20
const MAX_SCORES = 500_000
const MAX_EMBEDDING_BYTES = 40 * 2 ** 20
const HEARTBEAT_COMMENT_MS = 15_000
const RESUME_MS = 60_000

export interface BuildOptions {
  config: NodeConfig
  ticketKeys: SigningKeys
  version: string
  clock: NodeClock
  log: Logger
  tracer?: GenerationTracer | undefined
  onProgress: (stage: string, fraction: number) => void
  /** Called when an operator asks for a drain over HTTP. */
  onDrain: () => void
}

export interface BuiltNode {
  context: NodeContext
  engine: EngineClient
  /** What the fleet hears of this node; `url` is where it listens. */
  describe(url: string): NodeDescription
  /** From now on new requests are refused with `node_draining`. */
  stopAccepting(): void
  close(): Promise<void>
}

export async function buildNode(options: BuildOptions): Promise<BuiltNode> {
  const { config, clock, log, onProgress } = options
  onProgress('opening the model', 0)
  const directory = await fetchBase(options)
  const { spec, decoder } = await readSpec(directory, config, log)
  const files = await readTokenizerFiles(directory)
  const eosTokens = spec.eosTokens
  const tokenizer = createTokenizer(files, eosTokens)
  const { chatTemplates, digest } = files
  const textEncoder = new CallerTextEncoder(tokenizer, new ThreadEncoder({ directory, digest }))
  const { bosText, eosText } = tokenizer
  const chatTemplate = createChatTemplate({ templates: chatTemplates, bosText, eosText })
  const toolFormat = detectToolFormat(chatTemplates.values())
  const markers = formatMarkers(toolFormat)
  const grammars = new GrammarService(grammarVocabulary(tokenizer, spec.vocabSize, eosTokens, markers))
  const opened = await openEngine({
    config,
    directory,
    decoder,
    maxPositions: spec.maxPositions,
    masks: () => grammars.maskSource(),
    limits: engineLimits(config),
    say: (line) => log.info(line),
    onProgress: ({ stage, fraction }) => onProgress(stage, fraction),
  })
  const { engine, dtype, device } = opened
  onProgress('opening the adapters', 0)
  const modelName = config.modelName ?? nameOfModel(config.model)
  const adapters = await openStore(options, directory, modelName, opened)
  const identity: NodeIdentity = {
    nodeId: config.nodeId,
    baseModel: modelName,
    baseDigest: spec.baseDigest,
    dtype,
    device,
    version: options.version,
  }
  let draining = false
  const metrics = createNodeMetrics({
    engineStats: () => engine.stats(),
    draining: () => draining,
    maxPositions: spec.maxPositions,
  })
  const context: NodeContext = {
    identity,
    limits: {
      maxBestOf: config.maxBestOf,
      maxStopSequences: config.maxStopSequences,
      maxBodyBytes: MAX_BODY_BYTES,
      maxScores: MAX_SCORES,
      maxEmbeddingBytes: MAX_EMBEDDING_BYTES,
      requestTimeoutMs: config.requestTimeoutMs,
      heartbeatMs: HEARTBEAT_COMMENT_MS,
      resumeMs: RESUME_MS,
    },
    engine,
    adapters,
    grammars,
    tokenizer,
    textEncoder,
    chatTemplate,
    toolFormat,
    eosTokens,
    ticketKeys: options.ticketKeys,
    clock,
    metrics,
    log,
    tracer: options.tracer,
    draining: () => draining,
    startDrain: options.onDrain,
  }
  const bootId = randomUUID()
  return {
    context,
    engine,
    describe: (url) => ({ ...describeNode(config, identity, engine, adapters, bootId), url: config.url ?? url }),
    stopAccepting: () => {
      draining = true
    },
    close: async () => {
      await engine.close()
      await Promise.all([adapters.close(), grammars.close(), textEncoder.close()])
    },
  }
}

async function fetchBase({ config, log, onProgress }: BuildOptions): Promise<string> {
  const { fetch, close } = createHomeFetch()
  try {
    return await resolveBase(config.revision === undefined ? config.model : `${config.model}@${config.revision}`, {
      endpoint: config.sources.hub.endpoint,
      token: config.hubToken,
      offline: config.sources.hub.offline,
      folder: join(config.stateDir, 'bases'),
      fetch,
      signal: new AbortController().signal,
      warn: (text) => log.warn(text),
      onProgress: (received, total) => onProgress('fetching the model', total === 0 ? 0 : received / total),
    })
  } finally {
    await close()
  }
}

/** Without weights: what the other parts must know before the engine has loaded. */
async function readSpec(directory: string, config: NodeConfig, log: Logger) {
  const checkpoint = await openCheckpoint(directory, { maxPositions: config.maxPositions })
  await checkpoint.close()
  for (const warning of checkpoint.spec.warnings) {
    log.warn(warning)
  }
  const { spec, decoder } = checkpoint
  return { spec: { ...spec, maxPositions: Math.min(spec.maxPositions, config.maxPositions) }, decoder }
}

export function engineLimits(config: NodeConfig): Partial<EngineLimits> {
  return {
    maxWaiting: config.maxWaiting,
    prefillChunk: config.prefillChunk ?? DEFAULT_LIMITS.prefillChunk,
    prefixCacheBytes: config.prefixCacheBytes ?? DEFAULT_LIMITS.prefixCacheBytes,
  }
}

function openStore(
  { config, log }: BuildOptions,
  directory: string,
  modelName: string,
  { engine, adapterLayout }: OpenEngine,
): Promise<AdapterStore> {
  return openAdapterStore({
    base: { directory, name: modelName, adapterLayout },
    cacheDirectory: join(config.stateDir, 'adapters'),
    diskBytes: config.adapterDiskBytes,
    ramBytes: config.adapterRamBytes,
    ...config.sources,
    adapterRoots: config.adapterRoots,
    onRestored: (pin) => {
      const warn = (error: unknown) => log.warn({ adapter: pin.ref, err: error }, 'a pinned adapter is not back')
      if ('error' in pin) {
        warn(pin.error)
      } else {
        engine.pinAdapter(pin.packed).catch(warn)
      }
    },
    engineResident: () => new Set(engine.stats().residentAdapters.map((adapter) => adapter.digest)),
    preload: config.preload.map((name) => {
      const parsed = parseAdapterName(name)
      if (parsed.kind === 'alias') {
        throw new Error(`--preload ${name}: name the source too, e.g. local:${name}`)
      }
      const selection = { kind: 'single', ref: parsed.ref } as const
      return { selection, options: { tenantId: 'operator', tokens: {} }, pin: true }
    }),
  })
}

function describeNode(
  config: NodeConfig,
  identity: NodeIdentity,
  engine: EngineClient,
  adapters: AdapterStore,
  bootId: string,
): Omit<NodeDescription, 'url'> {
  const { spec } = engine
  const stats = engine.stats()
  return {
    nodeId: identity.nodeId,
    region: config.region,
    baseModel: identity.baseModel,
    baseDigest: identity.baseDigest,
    dtype: identity.dtype,
    maxSequences: spec.maxRows,
    maxPositions: spec.maxPositions,
    inFlight: engine.inFlight(),
    queued: stats.waiting,
    bootId,
    resident: adapters
      .list()
      .flatMap(({ refs, digest, tier }) =>
        refs.map((ref) => ({ ref, digest, tier: engine.isResident(digest) ? ('engine' as const) : tier })),
      )
      .slice(0, MAX_RESIDENTS),
  }
}

/** The directory's name; `base` and `model` say nothing, so the one above goes in front. A hub id is its own name. */
function nameOfModel(model: string): string {
  if (!statSync(model, { throwIfNoEntry: false })?.isDirectory()) {
    return model.split('@')[0] ?? model
  }
  const path = resolve(model)
  const name = basename(path)
  return /^(base|model)$/i.test(name) ? `${basename(dirname(path))}-${name}` : name
}
