/**
 * Ringlet's node and llama.cpp's server beside each other: the same model (int8 here, Q8_0 there), two threads, sixteen
 * slots, 64 new tokens a request, streamed over HTTP. All servers run all the time, one of them is asked at a time, and they
 * take turns, so that all see the same weather.
 *
 *     npx tsx bench/peers/llama-cpp/compare.ts --work WORK --checkpoint HF_DIR --llama PATH/llama-server [--rounds 3]
 */

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { readEvents } from '../../../test/support/sse-reader.ts'
import { startBenchNode } from '../../bench-node.ts'

const { values } = parseArgs({
  options: {
    work: { type: 'string' },
    checkpoint: { type: 'string' },
    llama: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    port: { type: 'string', default: '18400' },
    only: { type: 'string' },
  },
})
const { work, checkpoint, llama } = values
if (work === undefined || checkpoint === undefined || llama === undefined) {
  throw new Error('--work, --checkpoint and --llama must be given')
}
const NEW_TOKENS = 64
const ADAPTERS = 8
const SLOTS = 16
/** `goal`: tokens/s beside llama.cpp's. */
const SCENES = [
  { streams: 1, adapters: 0, goal: 1.3 },
  { streams: 8, adapters: 0, goal: 1.8 },
  { streams: 8, adapters: 1, goal: 1.6 },
  { streams: 8, adapters: 8, goal: 4 },
  { streams: 16, adapters: 8, goal: 6 },
]
const TOPICS = ['rain', 'bread', 'the moon', 'a bridge', 'chess', 'wool', 'a lighthouse', 'rivers']

interface Peer {
  name: string
  /** `adapter` undefined: the base. Calls `onToken` for each token. */
  stream(prompt: string, adapter: number | undefined, onToken: () => void): Promise<void>
  close(): Promise<void>
}

interface Run {
  tokensPerSecond: number
  /** Milliseconds to the first token, of the fastest and the slowest stream. */
  firstTokenMs: [number, number]
}

let asked = 0

async function startRinglet(): Promise<Peer> {
  const state = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
  const node = await startBenchNode([
    ...['--model', checkpoint ?? '', '--adapter-root', join(work ?? '', 'adapters'), '--state', state],
    ...['--dtype', 'int8', '--threads', '2', '--max-sequences', String(SLOTS), '--max-positions', '512'],
  ])
  return {
    name: 'ringlet',
    stream: (prompt, adapter, onToken) =>
      node.stream(
        { prompt, adapter: adapter === undefined ? undefined : `lora-${adapter}`, tokens: NEW_TOKENS },
        onToken,
      ),
    close: async () => {
      await node.stop()
      await rm(state, { recursive: true, force: true })
    },
  }
}

/** `withAdapters` false: for requests to the base, which pay for every adapter that its server has loaded. */
async function startLlama(port: number, withAdapters: boolean): Promise<Peer> {
  const loras = Array.from({ length: ADAPTERS }, (_, i) => join(work ?? '', `lora-${i}.gguf`)).join(',')
  const flags = [
    ...['-m', join(work ?? '', 'model-q8_0.gguf')],
    ...(withAdapters ? ['--lora', loras, '--lora-init-without-apply'] : []),
    ...['-t', '2', '-tb', '2', '-np', String(SLOTS), '-c', '8192', '--host', '127.0.0.1', '--port', String(port)],
  ]
  const binary = llama ?? ''
  const child = spawn(binary, flags, {
    stdio: 'ignore',
    env: { ...process.env, LD_LIBRARY_PATH: dirname(binary) },
  })
  const base = `http://127.0.0.1:${port}`
  while (
    !(await fetch(`${base}/health`).then(
      (reply) => reply.ok,
      () => false,
    ))
  ) {
    if (child.exitCode !== null) {
      throw new Error(`llama-server ended with ${child.exitCode}`)
    }
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
  return {
    name: 'llama.cpp',
    stream: (prompt, adapter, onToken) => {
      const body = {
        prompt,
        n_predict: NEW_TOKENS,
        stream: true,
        ignore_eos: true,
        temperature: 0,
        cache_prompt: false,
        ...(adapter === undefined ? {} : { lora: [{ id: adapter, scale: 1 }] }),
      }
      return readLlama(`${base}/completion`, body, onToken)
    },
    close: () => end(child),
  }
}

async function readLlama(url: string, body: object, onToken: () => void): Promise<void> {
  const response = await fetch(url, { method: 'POST', body: JSON.stringify(body) })
  if (!response.ok) {
    throw new Error(`${url} answered ${response.status}: ${(await response.text()).slice(0, 300)}`)
  }
  for await (const { data } of readEvents(response)) {
    const event: { stop?: boolean; error?: unknown } = JSON.parse(data)
    if (event.error !== undefined) {
      throw new Error(`${url}: ${data.slice(0, 300)}`)
    }
    if (event.stop === false) {
      onToken()
    }
  }
}

async function measure(peer: Peer, streams: number, adapters: number): Promise<Run> {
  const startedAt = performance.now()
  const firsts: number[] = []
  await Promise.all(
    Array.from({ length: streams }, async (_, i) => {
      // No two prompts are alike, so that no server gains from an earlier one.
      asked += 1
      const prompt = `Note ${asked}. Tell me a short story about ${TOPICS[i % TOPICS.length]} and a door that would not close.`
      let seen = 0
      await peer.stream(prompt, adapters === 0 ? undefined : i % adapters, () => {
        seen += 1
        if (seen === 1) {
          firsts.push(performance.now() - startedAt)
        }
      })
      // llama.cpp's last token comes with its closing event.
      if (seen < NEW_TOKENS - 1 || seen > NEW_TOKENS) {
        throw new Error(`${peer.name} sent ${seen} tokens instead of ${NEW_TOKENS}`)
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1000
  return {
    tokensPerSecond: (streams * NEW_TOKENS) / seconds,
    firstTokenMs: [Math.min(...firsts), Math.max(...firsts)],
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode === null) {
    const exited = once(child, 'exit')
    child.kill('SIGTERM')
    await exited
  }
}

const port = Number(values.port)
const ringlet = await startRinglet()
const llamaBase = await startLlama(port, false)
const llamaAdapted = await startLlama(port + 1, true)
try {
  await measure(ringlet, 2, 0)
  await measure(ringlet, ADAPTERS, ADAPTERS)
  await measure(llamaBase, 2, 0)
  await measure(llamaAdapted, ADAPTERS, ADAPTERS)
  console.log(
    `${values.rounds} rounds, the servers taking turns; ${NEW_TOKENS} new tokens a stream; median (least – most)`,
  )
  console.log(
    'streams adapters   tokens/s: ringlet            llama.cpp            ratio   goal   first token ms (slowest stream)',
  )
  for (const { streams, adapters, goal } of SCENES) {
    if (values.only !== undefined && values.only !== `${streams}/${adapters}`) {
      continue
    }
    const peers = [ringlet, adapters === 0 ? llamaBase : llamaAdapted]
    const runs = peers.map((): Run[] => [])
    for (let round = 0; round < Number(values.rounds); round++) {
      for (const [i, peer] of peers.entries()) {
        runs[i]?.push(await measure(peer, streams, adapters))
      }
    }
    const [ours = [], theirs = []] = runs
    const ratios = ours.map((run, i) => run.tokensPerSecond / (theirs[i]?.tokensPerSecond ?? Number.NaN))
    const row = [
      String(streams).padStart(7) + String(adapters).padStart(9),
      spread(ours.map((run) => run.tokensPerSecond)).padStart(24),
      spread(theirs.map((run) => run.tokensPerSecond)).padStart(21),
      `${middle(ratios).toFixed(2)}×`.padStart(9),
      `${goal}×`.padStart(7),
      `   ${middle(ours.map((run) => run.firstTokenMs[1])).toFixed(0)} / ${middle(theirs.map((run) => run.firstTokenMs[1])).toFixed(0)}`,
    ]
    console.log(row.join(''))
  }
} finally {
  await Promise.all([ringlet, llamaBase, llamaAdapted].map((peer) => peer.close()))
}

function middle(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
}

function spread(numbers: readonly number[]): string {
  return `${middle(numbers).toFixed(0)} (${Math.min(...numbers).toFixed(0)} – ${Math.max(...numbers).toFixed(0)})`
}
