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
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { createParser } from 'eventsource-parser'
import type { AdapterSelection } from '../../../shared/adapter-ref.ts'
import { mintTicket, TICKET_HEADER } from '../../../shared/ticket.ts'

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
const NODE_ID = 'bench'
const KEYS = { keys: [{ id: 'bench', secret: 'a-secret-for-this-bench-alone-0123456789' }] }
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

async function startRinglet(port: number): Promise<Peer> {
  const state = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
  const flags = [
    ...['--model', checkpoint ?? '', '--adapter-root', join(work ?? '', 'adapters'), '--state', state],
    ...['--dtype', 'int8', '--threads', '2', '--max-sequences', String(SLOTS), '--max-positions', '512'],
    ...['--node-id', NODE_ID, '--port', String(port), '--log-level', 'warn'],
    ...['--ticket-keys', KEYS.keys.map(({ id, secret }) => `${id}:${secret}`).join(',')],
  ]
  const child = spawn(process.execPath, ['--import', 'tsx', 'gpu-node/main.ts', ...flags], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await lineWith(child, 'node ready')
  const url = `http://127.0.0.1:${port}/generate_stream`
  return {
    name: 'ringlet',
    stream: async (prompt, adapter, onToken) => {
      asked += 1
      const selection: AdapterSelection =
        adapter === undefined ? { kind: 'base' } : { kind: 'single', ref: { source: 'local', id: `lora-${adapter}` } }
      const ticket = await mintTicket(
        {
          action: 'generate',
          ticketId: `t${asked}`,
          requestId: `r${asked}`,
          tenantId: 'bench',
          nodeId: NODE_ID,
          adapter: selection,
          cacheSalt: '00',
          seed: 1,
          limits: {},
          createdAt: Math.floor(Date.now() / 1000),
          expiresAt: Date.now() + 30_000,
        },
        KEYS,
      )
      const body = { inputs: prompt, parameters: { max_new_tokens: NEW_TOKENS, ignore_eos_token: true } }
      await readStream(url, { [TICKET_HEADER]: ticket }, body, (data) => 'token' in data, onToken)
    },
    close: async () => {
      await end(child)
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
      return readStream(`${base}/completion`, {}, body, (data) => data.stop === false, onToken)
    },
    close: () => end(child),
  }
}

async function readStream(
  url: string,
  headers: Record<string, string>,
  body: object,
  isToken: (data: Record<string, unknown>) => boolean,
  onToken: () => void,
): Promise<void> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  })
  if (!response.ok || response.body === null) {
    throw new Error(`${url} answered ${response.status}: ${(await response.text()).slice(0, 300)}`)
  }
  const parser = createParser({
    onEvent: ({ data }) => {
      const event: Record<string, unknown> = JSON.parse(data)
      if ('error' in event) {
        throw new Error(`${url}: ${data.slice(0, 300)}`)
      }
      if (isToken(event)) {
        onToken()
      }
    },
  })
  const decoder = new TextDecoder()
  for await (const chunk of response.body) {
    parser.feed(decoder.decode(chunk, { stream: true }))
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

async function lineWith(child: ChildProcess, text: string): Promise<void> {
  if (child.stdout === null) {
    throw new Error('the process has no stdout')
  }
  for await (const line of createInterface(child.stdout)) {
    if (line.includes(text)) {
      return
    }
  }
  throw new Error(`the process ended without '${text}'`)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode === null) {
    const exited = once(child, 'exit')
    child.kill('SIGTERM')
    await exited
  }
}

const port = Number(values.port)
const ringlet = await startRinglet(port)
const llamaBase = await startLlama(port + 1, false)
const llamaAdapted = await startLlama(port + 2, true)
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
