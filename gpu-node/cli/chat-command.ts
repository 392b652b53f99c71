/** `ringlet chat`: a conversation with a model or an adapter in the terminal, streamed as it is generated. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { defineCommand } from 'citty'
import { createRingletClient, type RingletClient } from '../../shared/client/ringlet-client.ts'
import { fetchFailure } from '../fetch-failure.ts'
import { checkArgs } from './command-args.ts'

const args = {
  adapter: { type: 'string', description: 'alias or name with its source; without it the base model answers' },
  system: { type: 'string', description: 'a system message' },
  'max-tokens': { type: 'string', description: 'of each answer', default: '512' },
  temperature: { type: 'string', description: '0 is greedy', default: '0' },
  edge: { type: 'string', description: 'URL of the edge (RINGLET_EDGE_URL, or the one that npm start runs)' },
  state: { type: 'string', description: 'directory of npm start', default: '.ringlet' },
} as const

type Message = Parameters<RingletClient['chatStream']>[0]['messages'][number]

export const chatCommand = defineCommand({
  meta: { name: 'chat', description: 'Talk to an adapter; an empty line or Ctrl-D ends it' },
  args,
  async run(context) {
    checkArgs(context.args, args)
    const { adapter, system, edge, state } = context.args
    const client = await openClient(edge, state)
    const model = adapter ?? (await baseModel(client))
    const sampling = {
      max_tokens: toNumber('--max-tokens', context.args['max-tokens']),
      temperature: toNumber('--temperature', context.args.temperature),
    }
    const messages: Message[] = system === undefined ? [] : [{ role: 'system', content: system }]
    const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: `${model}> ` })
    lines.prompt()
    for await (const line of lines) {
      if (line.trim() === '') {
        break
      }
      messages.push({ role: 'user', content: line })
      messages.push({ role: 'assistant', content: await answer(client, { model, messages, ...sampling }) })
      lines.prompt()
    }
    lines.close()
  },
})

/** Prints the answer as it comes; an error ends the command with the endpoint's own words. */
async function answer(client: RingletClient, body: Parameters<RingletClient['chatStream']>[0]): Promise<string> {
  let text = ''
  for await (const chunk of client.chatStream(body)) {
    const piece = chunk.choices[0]?.delta.content ?? ''
    process.stdout.write(piece)
    text += piece
  }
  process.stdout.write('\n')
  return text
}

/** The token comes from RINGLET_TOKEN or dev.json, never from the command line, which others on the machine can read. */
async function openClient(edge: string | undefined, state: string): Promise<RingletClient> {
  const token = process.env.RINGLET_TOKEN
  const baseUrl = edge ?? process.env.RINGLET_EDGE_URL
  if (token !== undefined && baseUrl !== undefined) {
    return clientOf(baseUrl, token)
  }
  const file = join(state, 'dev.json')
  const text = await readFile(file, 'utf8').catch((cause: unknown) => {
    throw new Error(`no endpoint is known: set RINGLET_EDGE_URL and RINGLET_TOKEN, or run npm start (${file})`, {
      cause,
    })
  })
  const local = JSON.parse(text) as { edgeUrl: string; tenantToken: string }
  return clientOf(baseUrl ?? local.edgeUrl, token ?? local.tenantToken)
}

function clientOf(baseUrl: string, token: string): RingletClient {
  return createRingletClient({
    baseUrl,
    token,
    fetch: (input, init) =>
      fetch(input, init).catch((cause: unknown) => {
        // Still a TypeError: by it the client knows a broken connection.
        throw new TypeError(`${baseUrl} does not answer: ${fetchFailure(cause)}`, { cause })
      }),
  })
}

/** The base is listed first, and it alone has no parent. */
async function baseModel(client: RingletClient): Promise<string> {
  const { data } = await client.models()
  const base = data.find((model) => model.parent === undefined || model.parent === null)
  if (base === undefined) {
    throw new Error('the endpoint lists no base model: no node takes requests, or the token may not use it')
  }
  return base.id
}

function toNumber(option: string, text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) {
    throw new Error(`${option} is a number from 0 up; given: ${text}`)
  }
  return value
}
