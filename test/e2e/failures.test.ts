import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ticketHeaders } from '../support/mint-ticket.ts'
import { listProcesses } from '../support/processes.ts'
import { type RunningStack, startStack } from '../support/running-stack.ts'
import { readEvents } from '../support/sse-reader.ts'

let stack: RunningStack

beforeAll(async () => {
  stack = await startStack()
})

afterAll(async () => {
  await stack?.stop()
})

const PROMPT = '<|user|>\nPlease send 3 red lamps to Anna in Berlin.<|end|>\n<|assistant|>\n'
const generate = (parameters: object) => ({ inputs: PROMPT, parameters: { max_new_tokens: 64, ...parameters } })

async function ask(adapter: string): Promise<{ status: number; text: string; node: string | null }> {
  const response = await stack.post('/generate', generate({ adapter_id: adapter }))
  const body = (await response.json()) as { generated_text?: string }
  return { status: response.status, text: body.generated_text ?? '', node: response.headers.get('x-ringlet-node') }
}

/** Engine gauges of a node, read with a ticket as the edge would sign it. */
async function nodeMetric(nodeId: string, name: string): Promise<number> {
  const { ticketSecret } = JSON.parse(await readFile(join(stack.stateDir, 'secrets.json'), 'utf8')) as {
    ticketSecret: string
  }
  const { nodes } = await stack.reread()
  const node = nodes.find(({ id }) => id === nodeId)
  const headers = await ticketHeaders({ action: 'info', nodeId }, { keys: [{ id: 'local', secret: ticketSecret }] })
  const text = await (await fetch(`${node?.url}/metrics`, { headers })).text()
  const line = text
    .split('\n')
    .find((candidate) => candidate.startsWith(`${name} `) || candidate.startsWith(`${name}{`))
  if (line === undefined) {
    throw new Error(`no metric ${name}`)
  }
  return Number(line.slice(line.lastIndexOf(' ') + 1))
}

/** Asks again until the answer is the wanted one; every process here is another's neighbour, so there is no event to await. */
async function eventually<T>(question: () => Promise<T>, wanted: (answer: T) => boolean): Promise<T> {
  const giveUp = Date.now() + 30_000
  for (;;) {
    const answer = await question()
    if (wanted(answer)) {
      return answer
    }
    if (Date.now() > giveUp) {
      throw new Error(`still ${JSON.stringify(answer)}`)
    }
    await sleep(50)
  }
}

describe('when a part goes', () => {
  test('a client that left has its row freed within two steps', async () => {
    const leaving = new AbortController()
    const response = await fetch(`${stack.dev.edgeUrl}/generate_stream`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.dev.tenantToken}`, 'content-type': 'application/json' },
      body: JSON.stringify(generate({ adapter_id: 'pirate', max_new_tokens: 900, ignore_eos_token: true })),
      signal: leaving.signal,
    })
    const node = response.headers.get('x-ringlet-node') ?? ''
    await expect(
      (async () => {
        for await (const _ of readEvents(response)) {
          leaving.abort()
        }
      })(),
    ).rejects.toThrow()
    await eventually(
      () => nodeMetric(node, 'ringlet_engine_running'),
      (running) => running === 0,
    )
    expect(await nodeMetric(node, 'ringlet_engine_max_abort_steps')).toBeLessThanOrEqual(2)
  })

  test('a killed node: the very next request is answered by the other one, and the node comes back', async () => {
    const first = await ask('orders-json')
    const victim = stack.dev.nodes.find(({ id }) => id === first.node)!
    process.kill(victim.pid, 'SIGKILL')
    const second = await ask('orders-json')
    expect(second).toMatchObject({ status: 200, text: first.text })
    expect(second.node).not.toBe(first.node)
    await stack.printed(new RegExp(`${victim.id} ended`))
    const nodes = await eventually(
      async () => (await stack.reread()).nodes,
      (now) => now.some(({ id, pid }) => id === victim.id && pid !== victim.pid && pid !== 0),
    )
    expect(nodes).toHaveLength(2)
  })

  test('a killed node mid-stream: its streams go on without a missing or repeated token', async () => {
    const undisturbed = await stack.post(
      '/generate',
      generate({ adapter_id: 'pirate', max_new_tokens: 400, ignore_eos_token: true }),
    )
    const { generated_text } = (await undisturbed.json()) as { generated_text: string }
    const response = await stack.post(
      '/generate_stream',
      generate({ adapter_id: 'pirate', max_new_tokens: 400, ignore_eos_token: true }),
    )
    const node = response.headers.get('x-ringlet-node')
    const pid = (await stack.reread()).nodes.find(({ id }) => id === node)!.pid
    let text = ''
    let last: string | null = null
    for await (const { data } of readEvents(response)) {
      const event = JSON.parse(data) as {
        token: { text: string; special: boolean }
        generated_text: string | null
        error?: string
      }
      expect(event.error).toBeUndefined()
      if (text === '') {
        process.kill(pid, 'SIGKILL')
      }
      text += event.token.special ? '' : event.token.text
      last = event.generated_text
    }
    expect(last).toBe(generated_text)
    expect(text).toBe(generated_text)
  })

  test('a killed edge comes back on its port with its tenants and aliases', async () => {
    const edge = (await listProcesses()).find(
      ({ commandLine }) => commandLine.includes('edge/dev.ts') && commandLine.includes(stack.stateDir),
    )
    process.kill(edge!.pid, 'SIGKILL')
    await stack.printed(/edge ended/)
    const answer = await eventually(
      () => ask('orders-json').catch(() => undefined),
      (reply) => reply?.status === 200,
    )
    expect(answer?.text).toContain('"customer": "Anna"')
  })

  test('a second npm start on the same state is told of the first, which runs on', async () => {
    const options = ['--silent', '--', '--port', '0', '--state', stack.stateDir]
    const second = await promisify(execFile)('npm', ['start', ...options]).catch(
      (error: { code: number; stderr: string }) => error,
    )
    expect(second).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`at ${stack.dev.edgeUrl}; for another: --state`),
    })
    expect((await stack.post('/generate', { inputs: 'x', parameters: { max_new_tokens: 1 } })).status).toBe(200)
  })

  test('SIGTERM ends every process that was started', async () => {
    const mine = (await listProcesses()).filter(({ commandLine }) => commandLine.includes(stack.stateDir))
    expect(mine.length).toBeGreaterThanOrEqual(4)
    expect(await stack.stop()).toBe(0)
    const left = (await listProcesses()).filter(({ pid }) => mine.some((process) => process.pid === pid))
    expect(left).toEqual([])
  })
})
