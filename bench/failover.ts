/**
 * Kills one of three real nodes under 50 streams, and drains another under load: counts what clients noticed. The demo
 * model, the whole system as `npm start` runs it. `npm run bench:failover`.
 */

import { type RunningStack, startStack } from '../test/support/running-stack.ts'
import { readEvents } from '../test/support/sse-reader.ts'

const STREAMS = 50
const TOKENS = 120
const DRAIN_REQUESTS = 200
const ADAPTERS = [undefined, 'orders-json', 'pirate']

interface Ended {
  text: string
  /** The code of what the client saw go wrong. */
  failure: string | undefined
  node: string | null
}

const question = (n: number) => `<|user|>\nPlease send ${n + 2} red lamps to Anna in Berlin.<|end|>\n<|assistant|>\n`

function body(n: number, tokens: number) {
  const adapter = ADAPTERS[n % ADAPTERS.length]
  const parameters = { max_new_tokens: tokens, ignore_eos_token: true }
  return {
    inputs: question(n),
    parameters: adapter === undefined ? parameters : { ...parameters, adapter_id: adapter },
  }
}

async function stream(stack: RunningStack, n: number, onToken: (node: string | null) => void): Promise<Ended> {
  const response = await stack.post('/generate_stream', body(n, TOKENS))
  const node = response.headers.get('x-ringlet-node')
  if (response.status !== 200) {
    return { text: '', failure: `status ${response.status}`, node }
  }
  let text = ''
  let final: string | null = null
  for await (const { data, event } of readEvents(response)) {
    const said = JSON.parse(data) as {
      token?: { text: string; special: boolean }
      generated_text?: string | null
      error?: string
    }
    if (said.error !== undefined) {
      return { text, failure: said.error, node }
    }
    if (event === undefined && said.token !== undefined) {
      text += said.token.special ? '' : said.token.text
      final = said.generated_text ?? null
      onToken(node)
    }
  }
  const whole = final === text
  return { text, failure: whole ? undefined : 'the events do not add up to the final text', node }
}

function report(name: string, ended: readonly Ended[], expected: readonly string[]): boolean {
  const failures = ended.flatMap(({ failure }) => (failure === undefined ? [] : [failure]))
  const changed = ended.filter(({ text, failure }, n) => failure === undefined && text !== expected[n]).length
  console.log(`${name}: ${ended.length} streams, ${failures.length} failed, ${changed} with another text`)
  for (const failure of new Set(failures)) {
    console.log(`  ${failure}`)
  }
  return failures.length + changed === 0
}

const stack = await startStack(['--nodes', '3'])
let clean = true
try {
  const all = (onToken: (node: string | null) => void = () => undefined) =>
    Promise.all(Array.from({ length: STREAMS }, (_, n) => stream(stack, n, onToken)))
  const undisturbed = await all()
  const texts = undisturbed.map(({ text }) => text)
  clean = report('undisturbed', undisturbed, texts) && clean

  let tokens = 0
  let victim: string | undefined
  const running = new Map<string, number>()
  const disturbed = await all((node) => {
    tokens += 1
    if (node !== null) {
      running.set(node, (running.get(node) ?? 0) + 1)
    }
    if (victim === undefined && tokens >= (STREAMS * TOKENS) / 4) {
      victim = [...running].sort((a, b) => b[1] - a[1])[0]![0]
      process.kill(stack.dev.nodes.find(({ id }) => id === victim)!.pid, 'SIGKILL')
    }
  })
  const hit = disturbed.filter(({ node }) => node === victim).length
  clean = report(`kill -9 of ${victim}, which had ${hit} of the streams`, disturbed, texts) && clean
  await stack.printed(new RegExp(`${victim} ended`))

  const drained = stack.dev.nodes.find(({ id }) => id !== victim)!
  let started = 0
  const ended: { status: number; failure: string }[] = []
  await Promise.all(
    Array.from({ length: 10 }, async () => {
      while (started < DRAIN_REQUESTS) {
        const n = started++
        if (n === DRAIN_REQUESTS / 4) {
          process.kill(drained.pid, 'SIGTERM')
        }
        const response = await stack.post('/generate', body(n, 24))
        ended.push({ status: response.status, failure: response.ok ? '' : await response.text() })
        await response.body?.cancel().catch(() => undefined) // read already where it failed
      }
    }),
  )
  const failed = ended.filter(({ status }) => status !== 200)
  console.log(`planned drain of ${drained.id}: ${ended.length} requests, ${failed.length} failed`)
  for (const { failure } of failed.slice(0, 3)) {
    console.log(`  ${failure}`)
  }
  clean = failed.length === 0 && clean
} finally {
  await stack.stop()
}
process.exitCode = clean ? 0 : 1
