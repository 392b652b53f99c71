/**
 * Time between two tokens of running streams while cold adapters load, 10 a second and 50 at once for 200 requests, beside
 * quiet streams, the same requests for adapters that are loaded, and the same loads without requests (prefetches).
 * `npx tsx bench/adapters-cold.ts [--rank R] [--targets all] [--rounds N] [--seconds S] [--only steady|burst]`
 *
 * One node process with a base of SmolLM2-135M's shape (random weights), driven over HTTP. A cold adapter is a local directory
 * that the node has never seen: read, checked, packed and put into the engine. Phases are short and follow each other in turns,
 * each round forwards and then backwards, so that all meet the same machine. The streams are read in a thread of their own;
 * the requests beside them are sent at low priority, as clients don't run on a node's cores. With `--rank 16 --targets all` an
 * adapter is 9.8 MB in bfloat16, and two busy cores can't make ten of them ready in a second.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import { constants, setPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type BenchNode, localAdapter, startBenchNode } from './bench-node.ts'
import { describeMachine, quantile, spread } from './machine.ts'
import { SHAPE_135M } from './random-base.ts'
import { ALL_LINEAR, writeRandomAdapter, writeRandomBase } from './random-files.ts'
import { StreamClients } from './stream-clients.ts'

const GOAL = 1.2
const LOADS_PER_SECOND = 10
const BURST = { requests: 200, adapters: 50 }
const POSITIONS = 2048
const STREAM_PROMPT = 'three red lamps for Berlin, please'
/** Short: what a prompt costs the streams is measured by interference.ts. */
const PROMPT = 'red'
const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '8' },
    rank: { type: 'string', default: '8' },
    targets: { type: 'string', default: 'q_proj,v_proj' },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '2' },
    threads: { type: 'string', default: '2' },
    only: { type: 'string' },
    /** Handed on to the node, comma-separated: to compare settings. */
    node: { type: 'string' },
  },
})
const streams = Number(values.streams)
const seconds = Number(values.seconds)
const targets = values.targets === 'all' ? ALL_LINEAR : values.targets.split(',')
let written = 0

/** Requests beside the streams: some a second, or all at once. */
type Beside = { kind: 'none' } | { kind: 'steady' | 'burst'; cold: boolean; prefetch?: boolean }

interface Measured {
  /** Ms between two tokens of a stream. */
  pauses: number[]
  /** Ms from a request beside the streams to its whole answer of one token. */
  answers: number[]
  /** Requests answered a second. */
  rate: number
}

const QUIET = 'nothing beside'
const PHASES: Record<string, Beside> = {
  [QUIET]: { kind: 'none' },
  '10 requests/s, loaded': { kind: 'steady', cold: false },
  '10 requests/s, cold': { kind: 'steady', cold: true },
  '10 prefetches/s, cold': { kind: 'steady', cold: true, prefetch: true },
  '200 at once, loaded': { kind: 'burst', cold: false },
  '200 for 50 cold at once': { kind: 'burst', cold: true },
  '200 prefetches of 50 cold': { kind: 'burst', cold: true, prefetch: true },
}

console.log(describeMachine())
const folder = await mkdtemp(join(tmpdir(), 'ringlet-cold-'))
const clients = new StreamClients()
let node: BenchNode | undefined
try {
  await writeRandomBase(join(folder, 'base'), { ...SHAPE_135M, positions: POSITIONS })
  const streamAdapters = await writeAdapters(streams)
  node = await start()
  if (process.platform === 'linux') {
    // There 0 is the calling thread alone.
    setPriority(0, constants.priority.PRIORITY_BELOW_NORMAL)
  }
  const bytes = await warmUp(node, streamAdapters)
  console.log(
    `135m shape, int8, ${values.threads} threads; ${streams} streams of ${streams} adapters, 16 rows; adapters of rank ` +
      `${values.rank} on ${targets.join(', ')}, ${(bytes / 1e6).toFixed(1)} MB packed; requests of '${PROMPT}' + 1 token`,
  )
  const chosen = Object.entries(PHASES).filter(
    ([, { kind }]) => kind === 'none' || values.only === undefined || kind === values.only,
  )
  const rounds: Record<string, Measured>[] = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const measured: Record<string, Measured> = {}
    for (const [name, beside] of round % 2 === 0 ? chosen : chosen.toReversed()) {
      measured[name] = await measure(node, streamAdapters, beside)
    }
    rounds.push(measured)
  }
  report(rounds)
} finally {
  await clients.close()
  await node?.stop()
  await rm(folder, { recursive: true, force: true })
}

function start(): Promise<BenchNode> {
  const places = ['--model', join(folder, 'base'), '--adapter-root', join(folder, 'adapters')]
  const sizes = ['--max-sequences', '16', '--max-positions', String(POSITIONS), '--prefix-cache', '0']
  const memory = ['--adapter-ram', '512MiB', '--adapter-disk', '4GiB', '--threads', values.threads]
  const more = values.node?.split(',') ?? []
  return startBenchNode([...places, ...sizes, ...memory, '--state', join(folder, 'state'), ...more])
}

/** Every stream's adapter in the engine, every session made, the code of both paths compiled; the packed bytes of an adapter. */
async function warmUp(on: BenchNode, names: readonly string[]): Promise<number> {
  await Promise.all(names.map((adapter) => on.generate({ adapter, prompt: STREAM_PROMPT, tokens: 8 })))
  const bytes = Math.max(...(await on.adapters()).map((adapter) => adapter.bytes))
  await measure(on, names, { kind: 'steady', cold: true })
  return bytes
}

async function measure(on: BenchNode, streamAdapters: readonly string[], beside: Beside): Promise<Measured> {
  const count = beside.kind === 'burst' ? BURST.adapters : Math.ceil(LOADS_PER_SECOND * seconds)
  const cold = beside.kind !== 'none' && beside.cold ? await writeAdapters(count) : []
  const wanted = cold.length > 0 ? cold : streamAdapters
  const options = { prompt: STREAM_PROMPT, tokens: POSITIONS - 64 }
  await clients.start(await Promise.all(streamAdapters.map((adapter) => on.streamRequest({ adapter, ...options }))))
  const answers: number[] = []
  const ask = async (i: number) => {
    const askedAt = performance.now()
    const adapter = wanted[i % wanted.length]
    if (beside.kind !== 'none' && beside.prefetch) {
      await on.post('/adapters/prefetch', {}, { action: 'prefetch', adapter: localAdapter(adapter) })
    } else {
      await on.generate({ adapter, prompt: PROMPT, tokens: 1 })
    }
    answers.push(performance.now() - askedAt)
  }
  const startedAt = performance.now()
  if (beside.kind === 'burst') {
    await Promise.all(Array.from({ length: BURST.requests }, (_, i) => ask(i)))
  } else {
    await steadily(beside.kind === 'steady' ? ask : undefined)
  }
  const rate = (1000 * answers.length) / (performance.now() - startedAt)
  const pauses = await clients.stop()
  await Promise.all(cold.map((name) => rm(join(folder, 'adapters', name), { recursive: true })))
  return { pauses, answers, rate }
}

/** For `seconds`, and then until the last answer. */
async function steadily(ask: ((i: number) => Promise<void>) | undefined): Promise<void> {
  const asked: Promise<void>[] = []
  const count = Math.ceil(LOADS_PER_SECOND * seconds)
  await new Promise<void>((done) => {
    const timer = setInterval(() => {
      if (asked.length === count) {
        clearInterval(timer)
        done()
        return
      }
      asked.push(ask?.(asked.length) ?? Promise.resolve())
    }, 1000 / LOADS_PER_SECOND)
  })
  await Promise.all(asked)
}

async function writeAdapters(count: number): Promise<string[]> {
  const names: string[] = []
  for (let i = 0; i < count; i++) {
    const name = `adapter-${written}`
    const options = { rank: Number(values.rank), targets, seed: written++ }
    await writeRandomAdapter(join(folder, 'adapters', name), SHAPE_135M, options)
    names.push(name)
  }
  return names
}

function report(rounds: readonly Record<string, Measured>[]): void {
  console.log(
    'beside the streams        pauses ms: p50    p99    max   p99 / quiet p99    p99 / quiet p50    answers/s   ms p50    p99',
  )
  const all = (name: string) => rounds.flatMap((round) => round[name]!.pauses)
  for (const name of Object.keys(rounds[0] ?? {})) {
    const measured = rounds.map((round) => round[name]!)
    const answers = measured.flatMap((one) => one.answers)
    const relation = (q: number) => {
      const together = quantile(all(name), 0.99) / quantile(all(QUIET), q)
      const apart = rounds.map((round) => quantile(round[name]!.pauses, 0.99) / quantile(round[QUIET]!.pauses, q))
      return `  ${together.toFixed(2)} (${quantile(apart, 0).toFixed(2)}–${quantile(apart, 1).toFixed(2)})`
    }
    const ms = (numbers: readonly number[], q: number) => quantile(numbers, q).toFixed(1).padStart(7)
    const pauses = [0.5, 0.99, 1].map((q) => ms(all(name), q))
    const rate = spread(
      measured.map((one) => one.rate),
      1,
    )
    const answered = answers.length === 0 ? [] : [`  ${rate}`, ms(answers, 0.5), ms(answers, 0.99)]
    console.log([name.padEnd(32), ...pauses, relation(0.99), relation(0.5), ...answered].join(''))
  }
  console.log(
    `${rounds.length} rounds; ratios of all pauses together (least–most of the rounds, each beside its own quiet phase); ` +
      `goal of the cold rows: p99 / quiet p99 ≤ ${GOAL}`,
  )
}
