/**
 * What the edge costs: the same client and load straight to a stub node, through Ringlet's edge in workerd, and, with
 * `--litellm DIR`, through LiteLLM's proxy (`bench/peers/litellm.sh`). `npm run bench:edge [-- --seconds 5 --rounds 3]`.
 */

import { fork } from 'node:child_process'
import { once } from 'node:events'
import { parseArgs } from 'node:util'
import { Pool } from 'undici'
import { startEdge } from '../edge/dev.ts'
import type { StubNodeOrder } from './edge-stub-node.ts'
import { startLitellm } from './peers/litellm.ts'

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '4' },
    rounds: { type: 'string', default: '3' },
    /** A virtual environment with LiteLLM. */
    litellm: { type: 'string' },
  },
})
const SECONDS = Number(values.seconds)
const ROUNDS = Number(values.rounds)
const CONNECTIONS = 32
const STREAM_TOKENS = 64
const BASE_MODEL = 'stub-base'

interface Target {
  name: string
  origin: string
  headers: Record<string, string>
  model: string
}

interface Latencies {
  p50: number
  p99: number
  rate: number
  errors: number
}

const targets: Target[] = []
const edge = await startEdge({ port: 0, vars: { RINGLET_ACCESS_LOG: 'errors' }, onLog: (line) => console.error(line) })
const stub = fork(new URL('./edge-stub-node.ts', import.meta.url), { execArgv: ['--import', 'tsx'] })
const [id, secret] = edge.vars.RINGLET_JOIN_KEYS!.split(':') as [string, string]
stub.send({
  edgeUrl: edge.url,
  joinKeys: [{ id, secret }],
  baseModel: BASE_MODEL,
  streamTokens: STREAM_TOKENS,
} satisfies StubNodeOrder)
const [{ url: stubUrl }] = (await once(stub, 'message')) as [{ url: string }]

targets.push({ name: 'straight to the node', origin: stubUrl, headers: {}, model: 'local:demo' })
const token = await createTenantToken(edge.url, edge.vars.RINGLET_ADMIN_TOKEN!)
targets.push({
  name: 'Ringlet edge, adapter',
  origin: edge.url,
  headers: { authorization: `Bearer ${token}` },
  model: 'local:demo',
})
const litellm = values.litellm === undefined ? undefined : await startLitellm(values.litellm, stubUrl)
if (litellm !== undefined) {
  targets.push({ name: 'LiteLLM proxy', origin: litellm.url, headers: litellm.headers, model: 'demo' })
}

try {
  await warmUp()
  const saturations = await rounds((target) => saturate(target, false))
  const edgeSaturation = median(saturations.get(targets[1]!)!.map((one) => one.rate))
  const rates = [
    ...new Set([Math.round(edgeSaturation / 2), ...(litellm === undefined ? [] : [litellmRate(saturations)])]),
  ]
  console.log(
    `\nJSON replies, ${CONNECTIONS} connections, ${ROUNDS} interleaved rounds of ${SECONDS} s, medians; one machine for all.`,
  )
  console.log('| | requests/s at saturation | of the node’s own |')
  console.log('|---|---|---|')
  const own = median(saturations.get(targets[0]!)!.map((one) => one.rate))
  for (const target of targets) {
    const rate = median(saturations.get(target)!.map((one) => one.rate))
    console.log(`| ${target.name} | ${rate.toFixed(0)} | ${(rate / own).toFixed(2)} |`)
  }
  for (const rate of rates) {
    console.log(`\nOpen loop at ${rate} requests/s, JSON replies, ms:`)
    // A target that can't keep up would only tell how long its queue grew.
    const able = targets.filter((target) => median(saturations.get(target)!.map((one) => one.rate)) > rate)
    printLatencies(await rounds((target) => openLoop(target, rate), able))
  }
  console.log(`\nStreams of ${STREAM_TOKENS} events, 8 at a time, ms to the first event and to the end:`)
  console.log('| | first event p50 / p99 | whole stream p50 / p99 | streams/s |')
  console.log('|---|---|---|---|')
  for (const [target, runs] of await rounds(streams)) {
    const of = (pick: (run: StreamRun) => number) => median(runs.map(pick)).toFixed(2)
    const first = `${of((run) => run.first.p50)} / ${of((run) => run.first.p99)}`
    const whole = `${of((run) => run.whole.p50)} / ${of((run) => run.whole.p99)}`
    console.log(`| ${target.name} | ${first} | ${whole} | ${of((run) => run.rate)} |`)
  }
} finally {
  stub.kill()
  await litellm?.stop()
  await edge.dispose()
}

async function createTenantToken(origin: string, adminToken: string): Promise<string> {
  const reply = await fetch(`${origin}/admin/tenants`, {
    method: 'POST',
    headers: { authorization: `Bearer ${adminToken}`, 'content-type': 'application/json' },
    body: JSON.stringify({ name: 'bench' }),
  })
  if (!reply.ok) {
    throw new Error(`no tenant: ${reply.status} ${await reply.text()}`)
  }
  const made = (await reply.json()) as Record<string, unknown>
  const text = JSON.stringify(made)
  const found = /"(rl_[A-Za-z0-9_-]+)"/.exec(text)?.[1]
  if (found !== undefined) {
    return found
  }
  const issued = await fetch(`${origin}/admin/tenants/bench/tokens`, {
    method: 'POST',
    headers: { authorization: `Bearer ${adminToken}`, 'content-type': 'application/json' },
    body: '{}',
  })
  return /"(rl_[A-Za-z0-9_-]+)"/.exec(await issued.text())![1]!
}

async function warmUp(): Promise<void> {
  for (const target of targets) {
    const run = await saturate(target, true)
    if (run.errors > 0) {
      throw new Error(`${target.name}: ${run.errors} errors in the warm-up`)
    }
  }
}

/** Each target once a round, in turn, so that all meet the same moods of the machine. */
async function rounds<T>(measure: (target: Target) => Promise<T>, among = targets): Promise<Map<Target, T[]>> {
  const results = new Map<Target, T[]>(among.map((target) => [target, []]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const target of among) {
      results.get(target)!.push(await measure(target))
    }
  }
  return results
}

function litellmRate(saturations: Map<Target, Latencies[]>): number {
  return Math.round(median(saturations.get(targets[2]!)!.map((one) => one.rate)) / 2)
}

function bodyFor(target: Target, stream: boolean): string {
  return JSON.stringify({ model: target.model, messages: [{ role: 'user', content: 'Say something short.' }], stream })
}

function ask(pool: Pool, target: Target, stream: boolean) {
  return pool.request({
    path: '/v1/chat/completions',
    method: 'POST',
    headers: { 'content-type': 'application/json', ...target.headers },
    body: bodyFor(target, stream),
  })
}

/** As fast as answers come. */
async function saturate(target: Target, brief: boolean): Promise<Latencies> {
  const pool = new Pool(target.origin, { connections: CONNECTIONS })
  const until = performance.now() + (brief ? 2_000 : SECONDS * 1000)
  const began = performance.now()
  const times: number[] = []
  let errors = 0
  const worker = async () => {
    while (performance.now() < until) {
      const sent = performance.now()
      const reply = await ask(pool, target, false)
      await reply.body.dump()
      errors += reply.statusCode === 200 ? 0 : 1
      times.push(performance.now() - sent)
    }
  }
  await Promise.all(Array.from({ length: CONNECTIONS }, worker))
  const elapsed = performance.now() - began
  await pool.close()
  return summary(times, elapsed, errors)
}

/** Sent at even intervals, whatever the answers do; a late answer delays no other request. */
async function openLoop(target: Target, rate: number): Promise<Latencies> {
  const pool = new Pool(target.origin, { connections: 128 })
  const times: number[] = []
  const asked: Promise<void>[] = []
  let errors = 0
  const began = performance.now()
  const all = Math.round(rate * SECONDS)
  while (asked.length < all) {
    const due = Math.min(all, Math.floor(((performance.now() - began) / 1000) * rate))
    while (asked.length < due) {
      const sent = performance.now()
      asked.push(
        ask(pool, target, false).then(async (reply) => {
          await reply.body.dump()
          errors += reply.statusCode === 200 ? 0 : 1
          times.push(performance.now() - sent)
        }),
      )
    }
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
  await Promise.all(asked)
  const elapsed = performance.now() - began
  await pool.close()
  return summary(times, elapsed, errors)
}

interface StreamRun {
  first: Latencies
  whole: Latencies
  rate: number
}

async function streams(target: Target): Promise<StreamRun> {
  const pool = new Pool(target.origin, { connections: 8 })
  const until = performance.now() + SECONDS * 1000
  const began = performance.now()
  const first: number[] = []
  const whole: number[] = []
  const worker = async () => {
    while (performance.now() < until) {
      const sent = performance.now()
      const reply = await ask(pool, target, true)
      let seen = false
      for await (const _ of reply.body) {
        if (!seen) {
          seen = true
          first.push(performance.now() - sent)
        }
      }
      whole.push(performance.now() - sent)
    }
  }
  await Promise.all(Array.from({ length: 8 }, worker))
  const elapsed = performance.now() - began
  await pool.close()
  return { first: summary(first, elapsed, 0), whole: summary(whole, elapsed, 0), rate: whole.length / (elapsed / 1000) }
}

function summary(times: number[], elapsedMs: number, errors: number): Latencies {
  const sorted = times.toSorted((a, b) => a - b)
  const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN
  return { p50: at(0.5), p99: at(0.99), rate: times.length / (elapsedMs / 1000), errors }
}

function printLatencies(results: Map<Target, Latencies[]>): void {
  const of = (target: Target, pick: (run: Latencies) => number) => median(results.get(target)!.map(pick))
  const [direct] = targets
  console.log('| | p50 | p99 | added p50 | added p99 | errors |')
  console.log('|---|---|---|---|---|---|')
  for (const target of results.keys()) {
    const [p50, p99] = [of(target, (run) => run.p50), of(target, (run) => run.p99)]
    const added = [p50 - of(direct!, (run) => run.p50), p99 - of(direct!, (run) => run.p99)]
    const errors = results.get(target)!.reduce((sum, run) => sum + run.errors, 0)
    const cells = [p50, p99, ...added].map((value) => value.toFixed(2))
    console.log(`| ${target.name} | ${cells.join(' | ')} | ${errors} |`)
  }
}

function median(numbers: number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN
}
