import { afterAll, beforeAll, expect, test } from 'vitest'
import { collectChoices } from '../../../gpu-node/http/choice-results.ts'
import { startGeneration } from '../../../gpu-node/http/start-generation.ts'
import { parseGenerateBody } from '../../../shared/api/generate-body.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { testTicket } from '../../support/mint-ticket.ts'

const chat = { model: 'm', messages: [{ role: 'user', content: 'Hello' }] }
const scored = { model: 'm', prompt: 'Hello there', echo: true, logprobs: 1, max_tokens: 1 }

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(async () => {
  await node.close()
})

test.each([
  ['alternatives', '/generate', { inputs: 'Hello', parameters: { return_k_alternatives: 10 } }, false],
  ['tokens that it lists', '/v1/chat/completions', { ...chat, n: 2, logprobs: true }, true],
  ['prompts that each choice repeats', '/v1/completions', { ...scored, n: 64 }, true],
] as const)(
  'a reply that grows beyond what can be sent whole by its %s is refused, and its sequences end',
  async (_, route, body, tells) => {
    const { request } = parseGenerateBody(body, route)
    const generation = await startGeneration(node.built.context, {
      ticket: testTicket(),
      request: { ...request, ignoreEos: true, maxNewTokens: request.maxNewTokens ?? 200 },
      api: 'lorax',
      promptField: 'inputs',
      adapterTokens: {},
      delivered: {},
      signal: new AbortController().signal,
    })
    await expect(collectChoices(generation, request, tells, 100)).rejects.toMatchObject({ code: 'field_invalid' })
    const { running, waiting } = await node.built.engine.freshStats()
    expect([running, waiting]).toEqual([0, 0])
  },
)
