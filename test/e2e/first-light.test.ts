import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type RunningStack, startStack } from '../support/running-stack.ts'
import { readEvents } from '../support/sse-reader.ts'

interface Sample {
  message: string
  answers: Record<string, string>
  base: string
}

const root = join(import.meta.dirname, '../..')
const { samples } = JSON.parse(readFileSync(join(root, 'test/fixtures/demo/tasks.json'), 'utf8')) as {
  samples: Sample[]
}
const scores = JSON.parse(readFileSync(join(root, 'models/demo/scores.json'), 'utf8')) as Record<string, number>
const golden = JSON.parse(readFileSync(join(root, 'models/demo/golden.json'), 'utf8')) as {
  prompts: string[]
  greedy_text: Record<string, string[]>
}
const TASKS = ['orders-json', 'orders-sql', 'redact', 'triage', 'pirate']

interface ChatReply {
  model: string
  choices: { message: { content: string }; finish_reason: string }[]
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number }
}

let stack: RunningStack

beforeAll(async () => {
  stack = await startStack()
})

afterAll(async () => {
  await stack?.stop()
})

const chatBody = (model: string, content: string) => ({
  model,
  messages: [{ role: 'user', content }],
  temperature: 0,
  max_tokens: 96,
})

async function chat(model: string, content: string): Promise<string> {
  const response = await stack.post('/v1/chat/completions', chatBody(model, content))
  expect(response.status).toBe(200)
  const reply = (await response.json()) as ChatReply
  return reply.choices[0]?.message.content ?? ''
}

/** At most `width` at once, results in order. */
async function inParallel<In, Out>(
  items: readonly In[],
  width: number,
  work: (item: In) => Promise<Out>,
): Promise<Out[]> {
  const results: Out[] = []
  let next = 0
  const worker = async () => {
    while (next < items.length) {
      const index = next++
      results[index] = await work(items[index]!)
    }
  }
  await Promise.all(Array.from({ length: width }, worker))
  return results
}

describe('the demo model behind the whole system', () => {
  test('every adapter does its task while the others run in the same batch', async () => {
    const asked = samples.flatMap((sample) => TASKS.map((task) => ({ task, sample })))
    const answers = await inParallel(asked, 24, ({ task, sample }) => chat(task, sample.message))
    for (const task of TASKS) {
      const right = asked.filter((ask, i) => ask.task === task && answers[i] === ask.sample.answers[task]).length
      expect(right / samples.length, task).toBeGreaterThanOrEqual((scores[task] ?? 1) - 0.03)
    }
  })

  test('the base answers as itself, by its own name and by none', async () => {
    const models = (await (
      await fetch(`${stack.dev.edgeUrl}/v1/models`, { headers: { authorization: `Bearer ${stack.dev.tenantToken}` } })
    ).json()) as { data: { id: string; parent?: string | null }[] }
    const base = models.data.find((model) => !TASKS.includes(model.id))
    expect(models.data.map((model) => model.id)).toEqual(expect.arrayContaining(TASKS))
    expect(await chat(base!.id, samples[0]!.message)).toBe(samples[0]!.base)
    const reply = await stack.post('/generate', {
      inputs: golden.prompts[0],
      parameters: { max_new_tokens: 96 },
    })
    expect(((await reply.json()) as { generated_text: string }).generated_text).toBe(golden.greedy_text.base?.[0])
    expect(reply.headers.get('x-adapter-id')).toBeNull()
  })

  test('16 concurrent streams with 4 adapters each give the text they give alone', async () => {
    const asked = Array.from({ length: 16 }, (_, i) => ({ task: TASKS[i % 4]!, message: samples[i]!.message }))
    const alone: string[] = []
    for (const { task, message } of asked) {
      alone.push(await streamed(task, message))
    }
    const together = await Promise.all(asked.map(({ task, message }) => streamed(task, message)))
    expect(together).toEqual(alone)
  })

  test('a reply says what answered', async () => {
    const response = await stack.post('/generate', {
      inputs: golden.prompts[0],
      parameters: { adapter_id: 'orders-json', max_new_tokens: 4 },
    })
    const headers = Object.fromEntries(response.headers)
    expect(headers).toMatchObject({
      'x-adapter-id': 'orders-json',
      'x-adapter-source': 'local',
      'x-adapter-cache': expect.stringMatching(/^(engine|ram|disk|remote)$/),
      'x-adapter-digest': expect.stringMatching(/^[0-9a-f]{64}$/),
      'x-ringlet-node': expect.stringMatching(/^node-[12]$/),
      'x-request-id': expect.any(String),
      'server-timing': expect.stringContaining('dur='),
    })
  })

  test('a name that resolves to nothing is 404, never the base', async () => {
    for (const model of ['orders-jsn', 'local:no-such-folder', 'local:../base']) {
      const response = await stack.post('/v1/chat/completions', chatBody(model, 'Hello'))
      expect([400, 404], model).toContain(response.status)
      expect(await response.json()).toMatchObject({ error: { code: expect.any(String) } })
    }
  })

  test("a reader that leaves mid-stream frees its row within two steps, and nobody else's text changes", async () => {
    const neighbours = samples.slice(0, 6).map((sample) => streamed('pirate', sample.message))
    const leaving = new AbortController()
    const response = await fetch(`${stack.dev.edgeUrl}/generate_stream`, {
      method: 'POST',
      headers: { authorization: `Bearer ${stack.dev.tenantToken}`, 'content-type': 'application/json' },
      body: JSON.stringify({
        inputs: golden.prompts[0],
        parameters: { adapter_id: 'pirate', max_new_tokens: 900, ignore_eos_token: true },
      }),
      signal: leaving.signal,
    })
    await expect(
      (async () => {
        for await (const _ of readEvents(response)) {
          leaving.abort()
        }
      })(),
    ).rejects.toThrow()
    expect(await Promise.all(neighbours)).toEqual(samples.slice(0, 6).map((sample) => sample.answers.pirate))
  })
})

async function streamed(model: string, content: string): Promise<string> {
  const response = await stack.post('/v1/chat/completions', { ...chatBody(model, content), stream: true })
  expect(response.status).toBe(200)
  let text = ''
  let done = false
  for await (const { data } of readEvents(response)) {
    done = data === '[DONE]'
    text += done
      ? ''
      : ((JSON.parse(data) as { choices: { delta: { content?: string } }[] }).choices[0]?.delta.content ?? '')
  }
  expect(done).toBe(true)
  return text
}
