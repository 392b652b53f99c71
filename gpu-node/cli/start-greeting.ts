/** What `npm start` prints when all runs: where, with which token, and lines to copy. Pure. */

export interface GreetingFacts {
  edgeUrl: string
  tenantToken: string
  baseModel: string
  adapters: readonly string[]
  stateDir: string
  /** The demo model: it knows one kind of message, and raw text needs its chat template spelled out. */
  isDemo: boolean
}

const DEMO_MESSAGE = 'Please send 3 red lamps to Anna in Berlin.'
const DEMO = { message: DEMO_MESSAGE, prompt: `<|user|>\\n${DEMO_MESSAGE}<|end|>\\n<|assistant|>\\n` }
const ANY = { message: 'What is the capital of France?', prompt: 'The capital of France is' }

export function greeting(facts: GreetingFacts): string {
  const { edgeUrl, tenantToken, baseModel, adapters, stateDir, isDemo } = facts
  const { message, prompt } = isDemo ? DEMO : ANY
  const curl = (path: string, body: string) =>
    `curl -s ${edgeUrl}${path} -H 'authorization: Bearer ${tenantToken}' -H 'content-type: application/json' -d '${body}'`
  const adapter = adapters.includes('orders-json') ? 'orders-json' : adapters[0]
  const parameters = (extra: string) => `"parameters":{"max_new_tokens":64${extra}}`
  const lines = [
    '',
    `Ringlet serves ${baseModel} at ${edgeUrl}`,
    `tenant token  ${tenantToken}`,
    `adapters      ${adapters.length === 0 ? 'none registered' : adapters.join(', ')}`,
    `state         ${stateDir} (dev.json, logs/)`,
    '',
    '# the base model',
    curl('/generate', `{"inputs":"${prompt}",${parameters('')}}`),
  ]
  if (adapter !== undefined) {
    const body = `{"inputs":"${prompt}",${parameters(`,"adapter_id":"${adapter}"`)}}`
    lines.push(`# the same prompt with the adapter ${adapter}`, curl('/generate', body))
  }
  const messages = `"messages":[{"role":"user","content":"${message}"}]`
  lines.push(
    '# OpenAI chat, streamed',
    curl('/v1/chat/completions', `{"model":"${adapter ?? baseModel}",${messages},"stream":true}`),
    '',
    'Ctrl-C ends it.',
  )
  return lines.join('\n')
}
