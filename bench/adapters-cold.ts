/**
 * Time between two tokens of running streams while cold adapters load, 10 a second and 50 at once for 200 requests, beside
 * quiet streams and beside the same requests for adapters that are loaded. `npx tsx bench/adapters-cold.ts [--rank R] [--rounds N]`
 *
 * One node process with a base of SmolLM2-135M's shape (random weights), driven over HTTP; times are those of the client. A
 * cold adapter is a local directory that the node has never seen: read, checked, packed and put into the engine. With
 * `--rank 16 --targets all` an adapter is 9.8 MB in bfloat16, and two busy cores can't make ten of them ready in a second.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type BenchNode, startBenchNode } from './bench-node.ts'
import { describeMachine, quantile, spread } from './machine.ts'
import { SHAPE_135M } from './random-base.ts'
import { ALL_LINEAR, writeRandomAdapter, writeRandomBase } from './random-files.ts'

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
    rounds: { type: 'string', default: '2' },
    seconds: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
  },
})
const streams = Number(values.streams)
const seconds = Number(values.seconds)
const targets = values.targets === 'all' ? ALL_LINEAR : values.targets.split(',')
let written = 0

/** Requests beside the streams: some a second, or all at once. */
type Beside = { kind: 'none' } | { kind: 'steady' | 'burst'; cold: boolean }

interface Measured {
  /** Ms between two tokens of a stream. */
  pauses: number[]
  /** Ms from a request beside the streams to its whole answer of one token. */
  answers: number[]
  /** Requests answered a second. */
  rate: number
}

const PHASES: Record<string, Beside> = {
  'nothing beside': { kind: 'none' },
  '10 requests/s, loaded': { kind: 'steady', cold: false },
  '10 requests/s, cold': { kind: 'steady', cold: true },
  '200 at once, loaded': { kind: 'burst', cold: false },
  '200 for 50 cold at once': { kind: 'burst', cold: true },
}

console.log(describeMachine())
const folder = await mkdtemp(join(tmpdir(), 'ringlet-cold-'))
let node: BenchNode | undefined
try {
  await writeRandomBase(join(folder, 'base'), { ...SHAPE_135M, positions: POSITIONS })
  const streamAdapters = await writeAdapters(streams)
  node = await start()
  const bytes = await warmUp(node, streamAdapters)
  console.log(
    `135m shape, int8, ${values.threads} threads; ${streams} streams of ${streams} adapters, 16 rows; adapters of rank ` +
      `${values.rank} on ${targets.join(', ')}, ${(bytes / 1e6).toFixed(1)} MB packed; requests of '${PROMPT}' + 1 token`,
  )
  const rounds: Record<string, Measured>[] = []
  for (let round = 0; round < Number(values.rounds); round++) {
    const measured: Record<string, Measured> = {}
    for (const [name, beside] of Object.entries(PHASES)) {
      measured[name] = await measure(node, streamAdapters, beside)
    }
    rounds.push(measured)
  }
  report(rounds)
} finally {
  await node?.stop()
  await rm(folder, { recursive: true, force: true })
}

function start(): Promise<BenchNode> {
  const places = ['--model', join(folder, 'base'), '--adapter-root', join(folder, 'adapters')]
  const sizes = ['--max-sequences', '16', '--max-positions', String(POSITIONS), '--prefix-cache', '0']
  const memory = ['--adapter-ram', '512MiB', '--adapter-disk', '4GiB', '--threads', values.threads]
  return startBenchNode([...places, ...sizes, ...memory, '--state', join(folder, 'state')])
}

/** Every stream's adapter in the engine, every session made; the packed bytes of an adapter. */
async function warmUp(on: BenchNode, names: readonly string[]): Promise<number> {
  await Promise.all(names.map((adapter) => on.generate({ adapter, prompt: STREAM_PROMPT, tokens: 8 })))
  return Math.max(...(await on.adapters()).map(({ bytes }) => bytes))
}

async function measure(on: BenchNode, streamAdapters: readonly string[], beside: Beside): Promise<Measured> {
  const count = beside.kind === 'burst' ? BURST.adapters : Math.ceil(LOADS_PER_SECOND * seconds)
  const cold = beside.kind !== 'none' && beside.cold ? await writeAdapters(count) : []
  const wanted = cold.length > 0 ? cold : streamAdapters
  const end = new AbortController()
  const running = await startStreams(on, streamAdapters, end)
  const answers: number[] = []
  const ask = async (i: number) => {
    const askedAt = performance.now()
    await on.generate({ adapter: wanted[i % wanted.length], prompt: PROMPT, tokens: 1 })
    answers.push(performance.now() - askedAt)
  }
  running.pauses.length = 0
  const startedAt = performance.now()
  if (beside.kind === 'burst') {
    await Promise.all(Array.from({ length: BURST.requests }, (_, i) => ask(i)))
  } else {
    await steadily(beside.kind === 'steady' ? ask : undefined)
  }
  const rate = (1000 * answers.length) / (performance.now() - startedAt)
  const pauses = [...running.pauses]
  if (running.ended() > 0) {
    throw new Error(`a stream ended before the loads did, after ${POSITIONS} positions`)
  }
  end.abort()
  await running.over
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

/** Resolves when each has its first tokens. */
async function startStreams(on: BenchNode, names: readonly string[], end: AbortController) {
  const pauses: number[] = []
  let ended = 0
  const started = names.map(
    (adapter) =>
      new Promise<{ over: Promise<void> }>((begun, failed) => {
        let tokens = 0
        let last = 0
        const options = { adapter, prompt: STREAM_PROMPT, tokens: POSITIONS - 64, signal: end.signal }
        const over = on
          .stream(options, (at) => {
            pauses.push(at - last)
            last = at
            tokens++
            if (tokens === 4) {
              begun({ over })
            }
          })
          .then(
            () => {
              ended++
            },
            (error: unknown) => {
              failed(error)
              if (!end.signal.aborted) {
                throw error
              }
            },
          )
      }),
  )
  const running = await Promise.all(started)
  const over = Promise.all(running.map((stream) => stream.over))
  return { pauses, ended: () => ended, over }
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
  for (const name of Object.keys(PHASES)) {
    const all = rounds.map((round) => round[name]!)
    const pauses = all.flatMap((measured) => measured.pauses)
    const answers = all.flatMap((measured) => measured.answers)
    const relations = (q: number) =>
      rounds.map((round) => quantile(round[name]!.pauses, 0.99) / quantile(round['nothing beside']!.pauses, q))
    const ms = (numbers: readonly number[], q: number) => quantile(numbers, q).toFixed(1).padStart(7)
    const row = [
      name.padEnd(32),
      ...[0.5, 0.99, 1].map((q) => ms(pauses, q)),
      `  ${spread(relations(0.99), 2)}`,
      `  ${spread(relations(0.5), 2)}`,
    ]
    const rate = spread(
      all.map((measured) => measured.rate),
      1,
    )
    const answered = answers.length === 0 ? [] : [`  ${rate}`, ms(answers, 0.5), ms(answers, 0.99)]
    console.log([...row, ...answered].join(''))
  }
  console.log(
    `${rounds.length} rounds, each beside its own quiet phase: median (least–most); goal of the cold rows: p99 / quiet p99 ≤ ${GOAL}`,
  )
}
