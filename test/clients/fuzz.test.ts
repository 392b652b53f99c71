/** Mutated bodies through the whole stack; bench/fuzz.ts sends ten thousand. */

import { afterAll, beforeAll, expect, test } from 'vitest'
import { type FakeHub, startFakeHub } from '../support/fake-hub.ts'
import { fuzz } from '../support/fuzz.ts'
import { type RunningStack, startStack } from '../support/running-stack.ts'

let hub: FakeHub
let stack: RunningStack
beforeAll(async () => {
  hub = await startFakeHub()
  stack = await startStack(['--nodes', '1'], { HF_ENDPOINT: hub.url })
})
afterAll(async () => {
  await stack?.stop()
  await hub?.close()
})

test('two hundred mutated bodies: no 5xx, no hang, and the node is well afterwards', async () => {
  const { edgeUrl, tenantToken, nodes } = stack.dev
  const headers = { authorization: `Bearer ${tenantToken}`, 'content-type': 'application/json' }
  const report = await fuzz({
    count: 200,
    seed: 2024,
    concurrency: 8,
    timeoutMs: 60_000,
    send: (path, body, signal) => fetch(edgeUrl + path, { method: 'POST', headers, body, signal }),
  })
  expect(report.faults).toEqual([])
  expect((await stack.reread()).nodes).toEqual(nodes)
  const answer = await stack.post('/generate', { inputs: 'Hello', parameters: { max_new_tokens: 3 } })
  expect(answer.status).toBe(200)
})
