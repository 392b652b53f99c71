import { afterAll, beforeAll, expect, test } from 'vitest'
import { adapterNamed, type DemoNode, startDemoNode } from '../support/demo-node.ts'

let node: DemoNode
beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(async () => {
  await node.close()
})

/** LoRAX's series and samples by name and labels. */
async function scrape(): Promise<Map<string, number>> {
  const text = await (await node.get('/metrics')).text()
  const samples = text.split('\n').filter((line) => line.startsWith('lorax_'))
  return new Map(samples.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.split(' ').at(-1))]))
}

test('a dashboard made for LoRAX finds its series, and they count what happened', async () => {
  const ask = (parameters: object, ticket = {}) =>
    node.post('/generate', { inputs: 'One two three', parameters: { max_new_tokens: 5, ...parameters } }, ticket)
  const before = await scrape()
  expect((await ask({ ignore_eos_token: true })).status).toBe(200)
  expect((await ask({ ignore_eos_token: true })).status).toBe(200)
  expect((await ask({ max_new_tokens: 100_000 })).status).toBe(422)
  expect((await ask({}, { adapter: adapterNamed('nobody') })).status).toBe(404)
  const missing = { model: 'nobody', prompt: 'One' }
  expect((await node.post('/v1/completions', missing, { adapter: adapterNamed('nobody') })).status).toBe(404)
  expect((await node.post('/generate', '{', {})).status).toBe(400)
  await (await node.post('/tokenize', { inputs: 'x' }, { action: 'tokenize' })).text()
  const after = await scrape()
  const grown = (name: string) => (after.get(name) ?? Number.NaN) - (before.get(name) ?? Number.NaN)
  expect({
    count: grown('lorax_request_count'),
    success: grown('lorax_request_success'),
    validation: grown('lorax_request_failure{err="validation"}'),
    download: grown('lorax_request_failure{err="download_adapter"}'),
    malformed: grown('lorax_request_failure{err="bad_request"}'),
    durations: grown('lorax_request_duration_count'),
    generated: grown('lorax_request_generated_tokens_sum'),
    allowed: grown('lorax_request_max_new_tokens_sum'),
  }).toEqual({
    count: 6,
    success: 2,
    validation: 1,
    download: 2,
    malformed: 1,
    durations: 2,
    generated: 10,
    allowed: 10,
  })
  expect(grown('lorax_request_input_length_sum')).toBeGreaterThan(5)
  expect(grown('lorax_batch_inference_success{method="decode"}')).toBeGreaterThan(4)
  const parts = ['validation', 'queue', 'inference'].map((part) => grown(`lorax_request_${part}_duration_sum`))
  expect(parts.reduce((sum, part) => sum + part, 0)).toBeCloseTo(grown('lorax_request_duration_sum'), 3)
  expect(after.get('lorax_queue_length')).toBe(0)
  expect(after.get('lorax_batch_current_size')).toBe(0)
})
