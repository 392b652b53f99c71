/** The node's settings: command line and environment, checked once. Nothing else under gpu-node/ reads the environment. */

import { hostname } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { z } from 'zod'
import type { SigningKeys } from '../shared/hmac.ts'
import { type DeviceChoice, type Dtype, parseDevice } from './device-choice.ts'
import { PACKAGE_ROOT } from './package-root.ts'

const options = {
  model: { type: 'string' },
  'model-name': { type: 'string' },
  revision: { type: 'string' },
  'adapter-root': { type: 'string', multiple: true },
  host: { type: 'string' },
  port: { type: 'string' },
  url: { type: 'string' },
  'node-id': { type: 'string' },
  region: { type: 'string' },
  dtype: { type: 'string' },
  device: { type: 'string' },
  'gpu-memory-fraction': { type: 'string' },
  'max-adapter-rank': { type: 'string' },
  'cuda-dir': { type: 'string' },
  'no-cuda-graphs': { type: 'boolean' },
  threads: { type: 'string' },
  'max-sequences': { type: 'string' },
  'max-positions': { type: 'string' },
  'max-waiting': { type: 'string' },
  'prefill-chunk': { type: 'string' },
  'prefix-cache': { type: 'string' },
  'max-engine-adapters': { type: 'string' },
  'adapter-ram': { type: 'string' },
  'adapter-disk': { type: 'string' },
  preload: { type: 'string', multiple: true },
  state: { type: 'string' },
  'edge-url': { type: 'string' },
  'join-secret': { type: 'string' },
  'ticket-keys': { type: 'string' },
  'request-timeout': { type: 'string' },
  'max-best-of': { type: 'string' },
  'max-stop-sequences': { type: 'string' },
  'log-level': { type: 'string' },
  help: { type: 'boolean' },
} as const

export const NODE_USAGE = `npm run dev:node -- [options]
  --model DIR|ID            checkpoint directory or hub id (models/demo/base); --revision pins a hub id
  --model-name NAME         the name clients ask for (from the directory or id)
  --adapter-root DIR        folder of local adapters; may be given several times
  --host ADDR --port N      where the node listens (127.0.0.1, 8081; 0 takes a free port)
  --url URL                 where the edge reaches it, if that differs
  --node-id ID --region R   how the edge knows it
  --edge-url URL            the edge to join; keys: RINGLET_JOIN_KEYS or --join-secret
  --ticket-keys ID:SECRET   keys of tickets, comma-separated (RINGLET_TICKET_KEYS)
  --state DIR               caches and, without configured keys, local ones (.ringlet)
  --device D                cpu, cuda, cuda:N, cuda:N,M (an engine each) or auto: CUDA where it works (cpu)
  --dtype T                 int8, int4, f32 (cpu), f16 or bf16 (cuda); int8 on cpu, f16 on cuda
  --gpu-memory-fraction F   of a GPU's memory that may be used (0.9)
  --max-adapter-rank N      on GPUs, the rank that each adapter slot has room for (64)
  --cuda-dir DIR            what npm run setup:cuda filled (.ort); --no-cuda-graphs runs steps uncaptured
  --threads N               of the engine (all cores)
  --max-sequences N         sequences that run at once (16)
  --max-positions N         prompt and generated tokens of a sequence (2048, or what the model has)
  --max-waiting N           sequences that may wait (256)
  --prefill-chunk N         prompt tokens in one step
  --prefix-cache BYTES      saved prompt prefixes, e.g. 256MiB; 0 turns reuse off
  --max-engine-adapters N   adapters in the engine at once (32)
  --adapter-ram BYTES       adapters in RAM (2GiB)
  --adapter-disk BYTES      adapters on disk (20GiB)
  --preload REF             load and pin at start, e.g. local:orders-json; may be given several times
  --request-timeout S       seconds until a request fails (600)
  --max-best-of N, --max-stop-sequences N   LoRAX's limits (2, 4)
  --log-level L             pino's levels (info)
OTEL_EXPORTER_OTLP_ENDPOINT is where traces go (nowhere)`

const whole = (least: number, most: number) =>
  z.string().regex(/^\d+$/, 'expected a whole number').transform(Number).pipe(z.number().min(least).max(most))

const UNITS: Record<string, number> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 }
const bytes = z
  .string()
  .regex(/^\d+(?:\.\d+)?(?:[KMGT]i?B?)?$/i, 'expected bytes, e.g. 512MiB')
  .transform((text) => {
    const unit = /[KMGT]/i.exec(text)?.[0].toUpperCase() ?? ''
    return Math.floor(Number.parseFloat(text) * (UNITS[unit] ?? 1))
  })

const keyList = z.string().transform((text, context): SigningKeys => {
  const keys = text.split(',').map((entry) => {
    const colon = entry.indexOf(':')
    return { id: entry.slice(0, Math.max(0, colon)), secret: entry.slice(colon + 1) }
  })
  if (keys.some(({ id, secret }) => !/^[\w-]{1,64}$/.test(id) || secret.length < 16)) {
    context.addIssue({ code: 'custom', message: 'expected id:secret,… with secrets of at least 16 characters' })
  }
  return { keys }
})

function deviceChoice(text: string, context: z.RefinementCtx): DeviceChoice {
  try {
    return parseDevice(text)
  } catch (error) {
    context.addIssue({ code: 'custom', message: error instanceof Error ? error.message : String(error) })
    return z.NEVER
  }
}

const flagsSchema = z.object({
  model: z.string().min(1).default('models/demo/base'),
  'model-name': z.string().min(1).max(512).optional(),
  revision: z.string().min(1).optional(),
  'adapter-root': z.array(z.string().min(1)).default([]),
  host: z.string().min(1).default('127.0.0.1'),
  port: whole(0, 65_535).default(8081),
  url: z.url({ protocol: /^https?$/ }).optional(),
  'node-id': z
    .string()
    .regex(/^[\w.-]{1,128}$/, 'expected letters, digits, . _ -')
    .optional(),
  region: z.string().max(64).default(''),
  dtype: z.enum(['int8', 'int4', 'f32', 'f16', 'bf16']).optional(),
  device: z.string().default('cpu').transform(deviceChoice),
  'gpu-memory-fraction': z
    .string()
    .regex(/^(?:0?\.\d+|1(?:\.0+)?)$/, 'expected a number above 0, at most 1')
    .default('0.9')
    .transform(Number)
    .refine((fraction) => fraction > 0, 'expected a number above 0, at most 1'),
  'max-adapter-rank': whole(1, 1024).default(64),
  'cuda-dir': z.string().min(1).default(join(PACKAGE_ROOT, '.ort')),
  'no-cuda-graphs': z.boolean().default(false),
  threads: whole(1, 1024).optional(),
  'max-sequences': whole(1, 1024).default(16),
  'max-positions': whole(2, 10_000_000).default(2048),
  'max-waiting': whole(0, 1_000_000).default(256),
  'prefill-chunk': whole(1, 65_536).optional(),
  'prefix-cache': bytes.optional(),
  'max-engine-adapters': whole(1, 100_000).default(32),
  'adapter-ram': bytes.default(2 * 2 ** 30),
  'adapter-disk': bytes.default(20 * 2 ** 30),
  preload: z.array(z.string().min(1)).default([]),
  state: z.string().min(1).default('.ringlet'),
  'edge-url': z.url({ protocol: /^https?$/ }).optional(),
  'join-secret': z.string().min(16).optional(),
  'ticket-keys': keyList.optional(),
  'request-timeout': whole(1, 86_400).default(600),
  'max-best-of': whole(1, 128).default(2),
  'max-stop-sequences': whole(1, 64).default(4),
  'log-level': z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info'),
})

const truthy = z.string().transform((text) => /^(1|true|yes|on)$/i.test(text))

/** Empty variables count as absent. */
const environmentSchema = z.object({
  RINGLET_TICKET_KEYS: keyList.optional(),
  RINGLET_JOIN_KEYS: keyList.optional(),
  RINGLET_S3_BUCKETS: z
    .string()
    .transform((text) => text.split(',').filter((name) => name !== ''))
    .optional(),
  OTEL_EXPORTER_OTLP_ENDPOINT: z.url({ protocol: /^https?$/ }).optional(),
  HF_ENDPOINT: z.url({ protocol: /^https?$/ }).default('https://huggingface.co'),
  HF_TOKEN: z.string().optional(),
  HF_HUB_OFFLINE: truthy.default(false),
  PREDIBASE_GATEWAY_ENDPOINT: z.url({ protocol: /^https?$/ }).default('https://api.app.predibase.com'),
  PREDIBASE_MODEL_BUCKET: z.string().optional(),
  PREDIBASE_MODEL_FOLDER: z.string().optional(),
  S3_ENDPOINT_URL: z.url({ protocol: /^https?$/ }).optional(),
  R2_ACCOUNT_ID: z.string().regex(/^\w+$/).optional(),
  AWS_REGION: z.string().optional(),
  AWS_DEFAULT_REGION: z.string().optional(),
})

export interface SourceSettings {
  hub: { endpoint: string; offline: boolean }
  predibase: { endpoint: string; bucket?: string; folder?: string }
  s3: { allowedBuckets: readonly string[] | '*'; endpointUrl?: string; r2AccountId?: string; region?: string }
}

export interface NodeConfig {
  /** A directory, or a hub id when there is no such directory. */
  model: string
  revision: string | undefined
  /** Absent: made from the directory or id. */
  modelName: string | undefined
  /** For the base model's own repository on the hub; adapters come with their callers' tokens. */
  hubToken: string | undefined
  adapterRoots: string[]
  host: string
  port: number
  /** Advertised to the edge; absent: where it listens. */
  url: string | undefined
  nodeId: string
  region: string
  device: DeviceChoice
  /** Absent: the device's own default. */
  dtype: Dtype | undefined
  gpuMemoryFraction: number
  maxAdapterRank: number
  /** ONNX Runtime beside its CUDA provider. */
  cudaFolder: string
  cudaGraphs: boolean
  threads: number
  maxSequences: number
  maxPositions: number
  maxWaiting: number
  /** Absent: the engine's default. */
  prefillChunk: number | undefined
  prefixCacheBytes: number | undefined
  maxEngineAdapters: number
  adapterRamBytes: number
  adapterDiskBytes: number
  preload: string[]
  stateDir: string
  edgeUrl: string | undefined
  /** Absent: local keys in the state directory. */
  ticketKeys: SigningKeys | undefined
  joinKeys: SigningKeys | undefined
  requestTimeoutMs: number
  maxBestOf: number
  maxStopSequences: number
  logLevel: string
  /** Where traces go; absent: nowhere. */
  traceEndpoint: string | undefined
  sources: SourceSettings
}

/** Throws an error whose message is one line for the operator. */
export function readConfig(
  argv: readonly string[],
  cores: number,
  environment: Readonly<Record<string, string | undefined>> = process.env,
): NodeConfig | 'help' {
  const { values } = parseArgs({ args: [...argv], options, allowPositionals: false })
  if (values.help) {
    return 'help'
  }
  const flags = check(flagsSchema, values, (name) => `--${name}`)
  const known = Object.entries(environment).filter(([, value]) => value !== undefined && value !== '')
  const env = check(environmentSchema, Object.fromEntries(known), (name) => name)
  const joinSecret = flags['join-secret']
  return {
    model: flags.model,
    revision: flags.revision,
    modelName: flags['model-name'],
    hubToken: env.HF_TOKEN,
    adapterRoots: flags['adapter-root'].map((root) => resolve(root)),
    host: flags.host,
    port: flags.port,
    url: flags.url,
    nodeId: flags['node-id'] ?? `${hostname().replace(/[^\w.-]/g, '-')}-${flags.port}`,
    region: flags.region,
    device: flags.device,
    dtype: flags.dtype,
    gpuMemoryFraction: flags['gpu-memory-fraction'],
    maxAdapterRank: flags['max-adapter-rank'],
    cudaFolder: resolve(flags['cuda-dir']),
    cudaGraphs: !flags['no-cuda-graphs'],
    threads: flags.threads ?? cores,
    maxSequences: flags['max-sequences'],
    maxPositions: flags['max-positions'],
    maxWaiting: flags['max-waiting'],
    prefillChunk: flags['prefill-chunk'],
    prefixCacheBytes: flags['prefix-cache'],
    maxEngineAdapters: flags['max-engine-adapters'],
    adapterRamBytes: flags['adapter-ram'],
    adapterDiskBytes: flags['adapter-disk'],
    preload: flags.preload,
    stateDir: resolve(flags.state),
    edgeUrl: flags['edge-url'],
    ticketKeys: flags['ticket-keys'] ?? env.RINGLET_TICKET_KEYS,
    joinKeys: joinSecret === undefined ? env.RINGLET_JOIN_KEYS : { keys: [{ id: 'join', secret: joinSecret }] },
    requestTimeoutMs: flags['request-timeout'] * 1000,
    maxBestOf: flags['max-best-of'],
    maxStopSequences: flags['max-stop-sequences'],
    logLevel: flags['log-level'],
    traceEndpoint: env.OTEL_EXPORTER_OTLP_ENDPOINT,
    sources: toSources(env),
  }
}

function toSources(env: z.infer<typeof environmentSchema>): SourceSettings {
  const region = env.AWS_REGION ?? env.AWS_DEFAULT_REGION
  return {
    hub: { endpoint: env.HF_ENDPOINT, offline: env.HF_HUB_OFFLINE },
    predibase: {
      endpoint: env.PREDIBASE_GATEWAY_ENDPOINT,
      ...(env.PREDIBASE_MODEL_BUCKET === undefined ? {} : { bucket: env.PREDIBASE_MODEL_BUCKET }),
      ...(env.PREDIBASE_MODEL_FOLDER === undefined ? {} : { folder: env.PREDIBASE_MODEL_FOLDER }),
    },
    s3: {
      // Which bucket a tenant may name is checked by the edge, before it signs the ticket.
      allowedBuckets: env.RINGLET_S3_BUCKETS ?? '*',
      ...(env.S3_ENDPOINT_URL === undefined ? {} : { endpointUrl: env.S3_ENDPOINT_URL }),
      ...(env.R2_ACCOUNT_ID === undefined ? {} : { r2AccountId: env.R2_ACCOUNT_ID }),
      ...(region === undefined ? {} : { region }),
    },
  }
}

function check<Schema extends z.ZodType>(
  schema: Schema,
  values: unknown,
  show: (name: string) => string,
): z.output<Schema> {
  const result = schema.safeParse(values)
  if (result.success) {
    return result.data
  }
  const issue = result.error.issues[0]
  // Never the value: it may be a key.
  throw new Error(`${show(String(issue?.path[0] ?? ''))}: ${issue?.message ?? 'invalid'}`)
}

/** Where a node without configured keys keeps local ones; the edge's own file, so that both agree on one machine. */
export function localKeysFile(stateDir: string): string {
  return join(stateDir, 'edge-secrets.json')
}

/** S3's SDK is of a fixed version here; which Node later ones will want is nothing an operator can act on. */
export function silenceSdkWarning(): void {
  process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true'
}
