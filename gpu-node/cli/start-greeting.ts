/** What `npm start` prints when all runs: where, with which token, and lines to copy. Pure. */

export interface GreetingFacts {
  edgeUrl: string
  tenantToken: string
  baseModel: string
  adapters: readonly string[]
  stateDir: string
}

const MESSAGE = 'Please send 3 red lamps to Anna in Berlin.'
/** The demo model's chat template, spelled out for the route that takes raw text. */
const PROMPT = `<|user|>\\n${MESSAGE}<|end|>\\n<|assistant|>\\n`

export function greeting(facts: GreetingFacts): string {
  const { edgeUrl, tenantToken, baseModel, adapters, stateDir } = facts
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
    curl('/generate', `{"inputs":"${PROMPT}",${parameters('')}}`),
  ]
  if (adapter !== undefined) {
    const body = `{"inputs":"${PROMPT}",${parameters(`,"adapter_id":"${adapter}"`)}}`
    lines.push(`# the same prompt with the adapter ${adapter}`, curl('/generate', body))
  }
  const messages = `"messages":[{"role":"user","content":"${MESSAGE}"}]`
  lines.push(
    '# OpenAI chat, streamed',
    curl('/v1/chat/completions', `{"model":"${adapter ?? baseModel}",${messages},"stream":true}`),
    '',
    'Ctrl-C ends it.',
  )
  return lines.join('\n')
}
