import { afterAll, beforeAll, expect, test } from 'vitest'
import { embeddingsSchema } from '../../../shared/api/openai-reply.ts'
import { adapterNamed, type DemoNode, startDemoNode } from '../../support/demo-node.ts'

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode(['--max-waiting', '16'])
})
afterAll(async () => {
  await node.close()
})

const inputs = Array.from({ length: 60 }, (_, i) => `text number ${i}`)
const embed = (input: unknown) =>
  node.post('/v1/embeddings', { model: 'redact', input }, { action: 'embed', adapter: adapterNamed('redact') })
const leases = () => node.built.context.adapters.list().map((adapter) => adapter.leases)

test('a list of texts longer than the engine’s queue is embedded, each as it is alone', async () => {
  const many = embeddingsSchema.parse(await (await embed(inputs)).json())
  expect(many.data).toHaveLength(60)
  const alone = embeddingsSchema.parse(await (await embed([inputs[59]])).json())
  const numbers = many.data[59]?.embedding as number[]
  const wanted = alone.data[0]?.embedding as number[]
  for (const [i, value] of wanted.entries()) {
    expect(numbers[i]).toBeCloseTo(value, 4)
  }
  expect(leases()).toEqual([0])
})

test('one wrong text refuses the list, and nothing goes on running for it', async () => {
  const response = await embed([...inputs, 'x '.repeat(1000)])
  expect([response.status, await response.json()]).toMatchObject([
    400,
    { error: { code: 'context_length_exceeded', param: 'input' } },
  ])
  const { running, waiting } = await node.built.engine.freshStats()
  expect([running, waiting, leases()]).toEqual([0, 0, [0]])
})
