import { afterAll, beforeAll, expect, test } from 'vitest'
import { collectChoices } from '../../../gpu-node/http/choice-results.ts'
import { startGeneration } from '../../../gpu-node/http/generation.ts'
import { parseLoraxRequest } from '../../../shared/api/lorax-request.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'
import { testTicket } from '../../support/mint-ticket.ts'

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(async () => {
  await node.close()
})

test('a reply that grows beyond what can be sent whole is refused, and its sequences end', async () => {
  const parameters = { max_new_tokens: 200, return_k_alternatives: 10, ignore_eos_token: true }
  const { request } = parseLoraxRequest({ inputs: 'Hello', parameters }, '/generate')
  const generation = await startGeneration(node.built.context, {
    ticket: testTicket(),
    request,
    promptField: 'inputs',
    adapterTokens: {},
    delivered: {},
    signal: new AbortController().signal,
  })
  await expect(collectChoices(generation, request, 100)).rejects.toMatchObject({ code: 'field_invalid' })
  const { running, waiting } = await node.built.engine.freshStats()
  expect([running, waiting]).toEqual([0, 0])
})
