/**
 * Tokens/s over 1,000 registered adapters asked for by Zipf(1) with RAM for 100, as a ratio to the same load over 5, and the
 * hit rates of the tiers. `npx tsx bench/adapters-zipf.ts [--adapters N] [--ram N] [--rank R] [--targets a,b] [--rounds N]`
 *
 * One node process with a base of SmolLM2-135M's shape (random weights), driven over HTTP; both loads take turns on it. The
 * adapters are on disk in their packed form, as in a node that has served them before. Default: PEFT's own choice for Llama,
 * q_proj and v_proj with rank 8; `--rank 16 --targets all` takes 20 times the disk and the time to make them.
 */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import pLimit from 'p-limit'
import { type BenchNode, localAdapter, startBenchNode } from './bench-node.ts'
import { describeMachine, spread } from './machine.ts'
import { SHAPE_135M } from './random-base.ts'
import { ALL_LINEAR, writeRandomAdapter, writeRandomBase } from './random-files.ts'

const GOAL = 0.8
const FEW = 5
const PROMPT = 'three red lamps for Berlin, please'
const { values } = parseArgs({
  options: {
    adapters: { type: 'string', default: '1000' },
    ram: { type: 'string', default: '100' },
    rank: { type: 'string', default: '8' },
    targets: { type: 'string', default: 'q_proj,v_proj' },
    rounds: { type: 'string', default: '4' },
    requests: { type: 'string', default: '64' },
    tokens: { type: 'string', default: '32' },
    clients: { type: 'string', default: '16' },
    threads: { type: 'string', default: '2' },
  },
})
const adapters = Number(values.adapters)
const ramAdapters = Number(values.ram)
const targets = values.targets === 'all' ? ALL_LINEAR : values.targets.split(',')
const tokens = Number(values.tokens)
const random = seededRandom(1)

interface Load {
  tokensPerSecond: number
  tiers: string[]
}

console.log(describeMachine())
const folder = await mkdtemp(join(tmpdir(), 'ringlet-zipf-'))
let node: BenchNode | undefined
try {
  await writeRandomBase(join(folder, 'base'), SHAPE_135M)
  for (let i = 0; i < adapters; i++) {
    const options = { rank: Number(values.rank), targets, seed: i }
    await writeRandomAdapter(join(folder, 'adapters', nameOf(i)), SHAPE_135M, options)
  }
  const bytes = await register()
  node = await start(['--adapter-ram', String(ramAdapters * bytes)])
  console.log(
    `135m shape, int8, ${values.threads} threads; ${adapters} adapters of rank ${values.rank} on ${targets.join(', ')}, ` +
      `${(bytes / 1e6).toFixed(2)} MB each; RAM for ${ramAdapters}, engine for 32`,
  )
  console.log(
    `${values.clients} requests at once (16 rows), ${values.requests} a load, '${PROMPT}' + ${tokens} tokens; Zipf(1) in both`,
  )
  // The memory as such traffic leaves it.
  await prefetch(node, draw(adapters, 3 * ramAdapters))
  await measure(node, FEW)
  await report(node)
} finally {
  await node?.stop()
  await rm(folder, { recursive: true, force: true })
}

/** Loads each adapter once, so that its packed form is on disk; the packed bytes of one. */
async function register(): Promise<number> {
  const registrar = await start(['--adapter-ram', '64GiB'])
  try {
    const startedAt = performance.now()
    const all = Array.from({ length: adapters }, (_, i) => i)
    await prefetch(registrar, all)
    const seconds = (performance.now() - startedAt) / 1000
    console.log(`${adapters} adapters checked and packed in ${seconds.toFixed(1)} s`)
    return Math.max(...(await registrar.adapters()).map(({ bytes }) => bytes))
  } finally {
    await registrar.stop()
  }
}

async function report(on: BenchNode): Promise<void> {
  console.log(`round   tokens/s over ${FEW}   over ${adapters}   ratio`)
  const rounds: { few: Load; many: Load }[] = []
  for (let round = 1; round <= Number(values.rounds); round++) {
    // In turns, and each first in every other round: the machine's other load meets both.
    const order = round % 2 === 1 ? [FEW, adapters] : [adapters, FEW]
    const first = await measure(on, order[0]!)
    const second = await measure(on, order[1]!)
    const [few, many] = round % 2 === 1 ? [first, second] : [second, first]
    rounds.push({ few, many })
    const rate = (load: Load) => load.tokensPerSecond.toFixed(0)
    console.log(
      `${String(round).padStart(5)} ${rate(few).padStart(17)} ${rate(many).padStart(11)} ${ratioOf({ few, many }).toFixed(2).padStart(7)}`,
    )
  }
  console.log(`ratio: ${spread(rounds.map(ratioOf), 2)}; goal ≥ ${GOAL.toFixed(2)}`)
  console.log(`hits of ${FEW}: ${tierShares(rounds.flatMap(({ few }) => few.tiers))}`)
  console.log(`hits of ${adapters}: ${tierShares(rounds.flatMap(({ many }) => many.tiers))}`)
}

function ratioOf({ few, many }: { few: Load; many: Load }): number {
  return many.tokensPerSecond / few.tokensPerSecond
}

function start(flags: string[]): Promise<BenchNode> {
  const places = ['--model', join(folder, 'base'), '--adapter-root', join(folder, 'adapters')]
  const sizes = ['--max-sequences', '16', '--max-positions', '256', '--prefix-cache', '0', '--threads', values.threads]
  return startBenchNode([...places, ...sizes, '--state', join(folder, 'state'), ...flags])
}

/** A few at once: more than that, and packed adapters are dropped rather than kept waiting for the disk. */
async function prefetch(on: BenchNode, wanted: readonly number[]): Promise<void> {
  const limit = pLimit(2)
  const load = async (i: number) => {
    await on.post('/adapters/prefetch', {}, { action: 'prefetch', adapter: localAdapter(nameOf(i)) })
  }
  await Promise.all(wanted.map((i) => limit(() => load(i))))
}

async function measure(on: BenchNode, of: number): Promise<Load> {
  const limit = pLimit(Number(values.clients))
  const startedAt = performance.now()
  const replies = await Promise.all(
    draw(of, Number(values.requests)).map((i) =>
      limit(() => on.generate({ adapter: nameOf(i), prompt: PROMPT, tokens })),
    ),
  )
  const seconds = (performance.now() - startedAt) / 1000
  const generated = replies.reduce((sum, reply) => sum + reply.tokens, 0)
  return { tokensPerSecond: generated / seconds, tiers: replies.map(({ tier }) => tier) }
}

/** Adapter i is asked for in proportion to 1 / (i + 1). */
function draw(of: number, count: number): number[] {
  const weights = Array.from({ length: of }, (_, i) => 1 / (i + 1))
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  return Array.from({ length: count }, () => {
    let left = random() * total
    const found = weights.findIndex((weight) => {
      left -= weight
      return left < 0
    })
    return found === -1 ? of - 1 : found
  })
}

function tierShares(tiers: readonly string[]): string {
  const share = (tier: string) => ((100 * tiers.filter((it) => it === tier).length) / tiers.length).toFixed(0)
  return `engine ${share('engine')} %, RAM ${share('ram')} %, disk ${share('disk')} %`
}

function nameOf(i: number): string {
  return `adapter-${i}`
}

/** mulberry32 (public domain). */
function seededRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
