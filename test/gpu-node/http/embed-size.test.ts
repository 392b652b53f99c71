import { afterAll, beforeAll, expect, test } from 'vitest'
import { embeddingsSchema } from '../../../shared/api/openai-reply.ts'
import { type DemoNode, startDemoNode } from '../../support/demo-node.ts'

const NUMBERS = 192
let node: DemoNode
beforeAll(async () => {
  // Room for eight embeddings whose numbers are written as digits.
  node = await startDemoNode([], { maxEmbeddingBytes: 8 * NUMBERS * 24 })
})
afterAll(async () => {
  await node.close()
})

const embed = (count: number, fields: object = {}) =>
  node.post(
    '/v1/embeddings',
    { model: 'demo-base', input: Array.from({ length: count }, (_, i) => `text ${i}`), ...fields },
    { action: 'embed' },
  )

test('a reply larger than the edge can hold is refused before anything runs, and the refusal says the limit', async () => {
  expect((await embed(8)).status).toBe(200)
  const { prefillTokens } = await node.built.engine.freshStats()
  const refused = await embed(9)
  const message = expect.stringContaining('up to 8 embeddings of 192 numbers as float. Given: 9')
  expect([refused.status, await refused.json()]).toMatchObject([
    400,
    { error: { code: 'field_invalid', param: 'input', message } },
  ])
  expect((await node.built.engine.freshStats()).prefillTokens).toBe(prefillTokens)
})

test('in base64 and with fewer dimensions more fit', async () => {
  expect((await embed(36, { encoding_format: 'base64' })).status).toBe(200)
  expect((await embed(37, { encoding_format: 'base64' })).status).toBe(400)
  expect((await embed(16, { dimensions: 96 })).status).toBe(200)
  expect((await embed(17, { dimensions: 96 })).status).toBe(400)
})

test('no number takes more bytes than are counted for it', async () => {
  const numbers = embeddingsSchema
    .parse(await (await embed(8)).json())
    .data.flatMap(({ embedding }) => embedding as number[])
  expect(JSON.stringify(numbers).length).toBeLessThan(24 * 8 * NUMBERS)
})

test('LoRAX’s route has the same limit', async () => {
  const limits = node.built.context.limits
  const most = limits.maxEmbeddingBytes
  limits.maxEmbeddingBytes = 100
  const refused = await node.post('/embed', { inputs: 'text' }, { action: 'embed' })
  limits.maxEmbeddingBytes = most
  expect([refused.status, await refused.json()]).toMatchObject([422, { code: 'field_invalid', param: 'inputs' }])
})
