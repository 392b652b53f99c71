/** Sends bodies mutated from valid ones and judges each answer: no 5xx, no hang, errors in shape, streams that end. */

import { VALID_BODIES } from './valid-bodies.ts'

export interface FuzzOptions {
  count: number
  /** The same seed sends the same bodies. */
  seed: number
  concurrency: number
  send: (path: string, bodyText: string, signal: AbortSignal) => Promise<Response>
  timeoutMs: number
}

export interface FuzzFault {
  path: string
  body: string
  fault: string
}

export interface FuzzReport {
  /** By path and status. */
  counts: Map<string, Map<number, number>>
  faults: FuzzFault[]
}

export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const random = mulberry32(options.seed)
  const report: FuzzReport = { counts: new Map(), faults: [] }
  let left = options.count
  const worker = async (): Promise<void> => {
    while (left > 0) {
      left--
      const valid = pick(VALID_BODIES, random)
      await sendOne(valid.path, mutateText(valid.body, random), options, report)
    }
  }
  await Promise.all(Array.from({ length: options.concurrency }, worker))
  return report
}

async function sendOne(path: string, body: string, options: FuzzOptions, report: FuzzReport): Promise<void> {
  let status = 0
  let fault: string | undefined
  try {
    const response = await options.send(path, body, AbortSignal.timeout(options.timeoutMs))
    status = response.status
    fault = judge(response, await response.text())
  } catch (error) {
    fault = error instanceof Error ? `${error.name}: ${error.message}` : String(error)
  }
  const byStatus = report.counts.get(path) ?? new Map<number, number>()
  report.counts.set(path, byStatus.set(status, (byStatus.get(status) ?? 0) + 1))
  if (fault !== undefined) {
    report.faults.push({ path, body: body.slice(0, 2000), fault })
  }
}

function judge(response: Response, text: string): string | undefined {
  if (response.status >= 500) {
    return `status ${response.status}: ${text.slice(0, 300)}`
  }
  if (response.headers.get('content-type')?.startsWith('text/event-stream')) {
    return /: end\n\n$/.test(text) ? undefined : `a stream without its end: ${text.slice(-200)}`
  }
  try {
    JSON.parse(text)
  } catch {
    return `no JSON: ${text.slice(0, 200)}`
  }
  return response.status < 400 || /"(?:message|error)":/.test(text) ? undefined : `no error body: ${text.slice(0, 200)}`
}

type Random = () => number

/** One to three changes of the value; one body in eight is damaged as text. */
export function mutateText(body: object, random: Random): string {
  let mutated: unknown = structuredClone(body)
  for (let changes = 1 + Math.floor(random() * 3); changes > 0; changes--) {
    mutated = mutate(mutated, random)
  }
  const text = JSON.stringify(mutated) ?? 'null'
  return random() < 0.125 ? damage(text, random) : text
}

function damage(text: string, random: Random): string {
  const at = Math.floor(random() * text.length)
  switch (Math.floor(random() * 4)) {
    case 0:
      return text.slice(0, at)
    case 1:
      return (
        text.slice(0, at) + pick(['"', '}', ']', ',', '\\', '\u0000', '\uD800', '1e999', '-'], random) + text.slice(at)
      )
    case 2:
      return text.slice(0, at) + text.slice(at + 1)
    default:
      return text + text
  }
}

/** Changes one place, reached by a random walk from the top. */
function mutate(value: unknown, random: Random): unknown {
  if (Array.isArray(value) && value.length > 0 && random() < 0.8) {
    const copy = [...value]
    const i = Math.floor(random() * copy.length)
    switch (Math.floor(random() * 5)) {
      case 0:
        copy.splice(i, 1)
        return copy
      case 1:
        return copy.concat(copy)
      default:
        copy[i] = mutate(copy[i], random)
        return copy
    }
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length > 0) {
    return mutateObject(value as Record<string, unknown>, random)
  }
  return strange(value, random)
}

function mutateObject(value: Record<string, unknown>, random: Random): unknown {
  const key = pick(Object.keys(value), random)
  const { [key]: chosen, ...rest } = value
  switch (Math.floor(random() * 12)) {
    case 0:
      return rest
    case 1:
      return { ...rest, [misspell(key, random)]: chosen }
    case 2:
      return { ...value, [pick(FIELDS, random)]: strange(undefined, random) }
    case 3:
      return { ...value, [key]: strange(chosen, random) }
    default:
      return { ...value, [key]: mutate(chosen, random) }
  }
}

const FIELDS = [
  ...['adapter_id', 'adapter_name', 'adapter_source', 'merged_adapters', 'api_token', 'lora', 'model', 'seed', 'n'],
  ...['stream', 'stop', 'tools', 'tool_choice', 'response_format', 'logprobs', 'best_of', 'watermark', 'grammar'],
  ...['truncate', 'typical_p', 'min_p', 'details', 'echo', 'suffix', 'functions', '__proto__', 'constructor', 'x'],
]

function misspell(key: string, random: Random): string {
  const at = Math.floor(random() * key.length)
  return pick([key.slice(0, at) + key.slice(at + 1), `${key}s`, key.toUpperCase(), key.replace('_', ''), ''], random)
}

function strange(value: unknown, random: Random): unknown {
  const common: unknown[] = [
    ...[null, true, false, 0, -1, 1, 2, 0.5, -0.5, 1e308, 2 ** 53 + 2, -(2 ** 63), 4294967296],
    ...['', ' ', 'a', '\u0000', '\ud800', '../../etc/passwd', 'local:orders-json', 'hub:nobody/none@main', 's3://b/p'],
    ...['Aa'.repeat(3000), '<|end|>', '💚'.repeat(50), [], {}, [[]], [null], [''], { a: 1 }, [{}], [-1, 1.5]],
    nested(random),
  ]
  return typeof value === 'string' && random() < 0.3
    ? value + pick(['x', '\n', '\u0007', '’', value], random)
    : pick(common, random)
}

function nested(random: Random): unknown {
  let value: unknown = 'deep'
  for (let depth = Math.floor(random() * 200); depth > 0; depth--) {
    value = random() < 0.5 ? [value] : { properties: value }
  }
  return value
}

function pick<Item>(items: readonly Item[], random: Random): Item {
  return items[Math.floor(random() * items.length)] as Item
}

/** Tommy Ettinger's mulberry32: small, seeded, good enough to choose bodies. */
export function mulberry32(seed: number): Random {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
