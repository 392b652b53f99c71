// A node as a process of its own, driven with tickets as the edge signs them: its time and its memory are its own.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { bundleNode, NODE_FLAGS } from '../gpu-node/cli/bundle-node.ts'
import type { AdapterSelection } from '../shared/adapter-ref.ts'
import type { Ticket } from '../shared/ticket.ts'
import { TEST_KEYS, TEST_NODE, ticketHeaders } from '../test/support/mint-ticket.ts'
import { readEvents } from '../test/support/sse-reader.ts'

export interface GenerateOptions {
  /** Name of a local adapter; absent: the base. */
  adapter?: string | undefined
  prompt: string
  tokens: number
  signal?: AbortSignal
}

export interface BenchNode {
  /** A whole answer, greedy, of exactly `tokens` tokens; throws on any refusal. */
  generate(options: GenerateOptions): Promise<{ tier: string; promptTokens: number; tokens: number }>
  /** What `stream` sends, for a client that reads it itself. */
  streamRequest(options: GenerateOptions): Promise<{ url: string; headers: Record<string, string>; body: string }>
  /** Calls back at each token. */
  stream(options: GenerateOptions, onToken: (at: number) => void): Promise<void>
  post(path: string, body: object, ticket?: Partial<Ticket>): Promise<Response>
  adapters(): Promise<{ ref: string; tier: string; bytes: number }[]>
  /** Linux: a field of /proc/PID/status in bytes. */
  memory(field: 'VmHWM' | 'VmRSS' | 'RssAnon'): Promise<number>
  /** From now on VmHWM is the peak since now. */
  resetPeak(): Promise<void>
  stop(): Promise<void>
}

export const localAdapter = (id: string | undefined): AdapterSelection =>
  id === undefined ? { kind: 'base' } : { kind: 'single', ref: { source: 'local', id } }

export async function startBenchNode(flags: readonly string[]): Promise<BenchNode> {
  const key = TEST_KEYS.keys[0]!
  const keys = ['--ticket-keys', `${key.id}:${key.secret}`, '--join-secret', key.secret, '--node-id', TEST_NODE]
  const child = spawn(
    process.execPath,
    [...NODE_FLAGS, await bundleNode(), '--port', '0', '--log-level', 'error', ...keys, ...flags],
    { cwd: resolve(import.meta.dirname, '..'), stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const url = await readyUrl(child)
  const post: BenchNode['post'] = async (path, body, ticket = {}) => {
    const reply = await fetch(url + path, {
      method: 'POST',
      headers: await ticketHeaders(ticket),
      body: JSON.stringify(body),
    })
    if (!reply.ok) {
      throw new Error(`${path}: ${reply.status} ${await reply.text()}`)
    }
    return reply
  }
  const streamRequest: BenchNode['streamRequest'] = async (options) => ({
    url: `${url}/generate_stream`,
    headers: await ticketHeaders({ adapter: localAdapter(options.adapter) }),
    body: JSON.stringify(bodyOf(options)),
  })
  return {
    post,
    generate: async (options) => {
      const reply = await post('/generate', bodyOf(options), { adapter: localAdapter(options.adapter) })
      await reply.arrayBuffer()
      const count = (name: string) => Number(reply.headers.get(name))
      const tier = reply.headers.get('x-adapter-cache') ?? 'base'
      return { tier, promptTokens: count('x-prompt-tokens'), tokens: count('x-generated-tokens') }
    },
    streamRequest,
    stream: async (options, onToken) => {
      const { url: address, headers, body } = await streamRequest(options)
      const signal = options.signal ?? null
      const reply = await fetch(address, { method: 'POST', headers, body, signal })
      for await (const event of readEvents(reply)) {
        if (event.id === undefined) {
          throw new Error(event.data)
        }
        onToken(performance.now())
      }
    },
    adapters: async () => {
      const reply = await fetch(`${url}/adapters`, { headers: await ticketHeaders({ action: 'info' }) })
      return ((await reply.json()) as { adapters: { ref: string; tier: string; bytes: number }[] }).adapters
    },
    memory: async (field) => {
      const status = await readFile(`/proc/${child.pid}/status`, 'utf8')
      return 1024 * Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1])
    },
    resetPeak: () => writeFile(`/proc/${child.pid}/clear_refs`, '5'),
    stop: async () => {
      if (child.exitCode === null) {
        child.kill('SIGTERM')
        await once(child, 'exit')
      }
    },
  }
}

function bodyOf({ adapter, prompt, tokens }: GenerateOptions): object {
  const named = adapter === undefined ? {} : { adapter_id: adapter, adapter_source: 'local' }
  return { inputs: prompt, parameters: { ...named, max_new_tokens: tokens, ignore_eos_token: true } }
}

function readyUrl(child: ChildProcess): Promise<string> {
  return new Promise((ready, failed) => {
    let text = ''
    let said = ''
    child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      said = (said + chunk).slice(-4096)
    })
    child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk
      const url = /^node ready (\S+)/m.exec(text)?.[1]
      if (url !== undefined) {
        ready(url)
      }
    })
    child.once('exit', (code) => failed(new Error(`the node ended with code ${code} before it was ready:\n${said}`)))
  })
}
