import { afterAll, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { adapterNamed, type DemoNode, startDemoNode } from '../../support/demo-node.ts'

const PROMPT = '<|user|>\nPlease send 3 red lamps to Anna in Berlin.<|end|>\n<|assistant|>\n'
const body = (parameters: object = {}) => ({ inputs: PROMPT, parameters: { max_new_tokens: 8, ...parameters } })

type Line = Record<string, string | number>
let node: DemoNode
let lines: Line[]

beforeAll(async () => {
  node = await startDemoNode()
})
afterAll(() => node.close())
beforeEach(() => {
  lines = []
  vi.spyOn(node.built.context.log, 'info').mockImplementation((fields: unknown, message?: unknown) => {
    if (message === 'generation_end') {
      lines.push(fields as Line)
    }
  })
})

test('a request says who it was, what it cost and where its time went', async () => {
  const adapter = adapterNamed('pirate')
  const ticket = { adapter, requestId: 'request-1', tenantId: 'tenant-1' }
  const response = await node.post('/generate', body(), ticket)
  expect(response.status).toBe(200)
  await response.json()
  expect(lines).toHaveLength(1)
  const line = lines[0] as Line
  const who = { requestId: 'request-1', tenant: 'tenant-1', adapter: 'local:pirate', tier: 'remote', outcome: 'ok' }
  expect(line).toMatchObject({ ...who, sequences: 1, promptTokens: 17, cachedTokens: 0, generatedTokens: 8 })
  const parts = ['prepareMs', 'loadMs', 'queueMs', 'prefillMs', 'decodeMs'].map((name) => Number(line[name]))
  expect(parts.every((ms) => ms >= 0)).toBe(true)
  // Rounded to tenths each.
  expect(parts.reduce((sum, ms) => sum + ms, 0)).toBeLessThanOrEqual(Number(line.totalMs) + 0.5)
})

test('of the base no adapter is said to be loaded; several answers are one line; no word of the prompt is in it', async () => {
  await (await node.post('/generate', body({ best_of: 2, do_sample: true }))).json()
  expect(lines).toEqual([
    expect.objectContaining({ adapter: 'base', sequences: 2, generatedTokens: 16, outcome: 'ok' }),
  ])
  expect(lines[0]).not.toHaveProperty('loadMs')
  expect(lines[0]).not.toHaveProperty('tier')
  expect(JSON.stringify(lines)).not.toContain('lamps')
})

test('what failed says with which code', async () => {
  const failed = await node.post('/generate', body(), { adapter: adapterNamed('pirate'), requestId: 'request-2' })
  await failed.json()
  const { engine } = node.built.context
  const submit = vi.spyOn(engine, 'submit').mockImplementationOnce((_sequence, _packed, onEvent) => {
    queueMicrotask(() => onEvent({ kind: 'failed', code: 'deadline_exceeded', message: 'took too long' } as never))
    return () => {}
  })
  expect((await node.post('/generate', body(), { requestId: 'request-3' })).status).toBe(504)
  submit.mockRestore()
  expect(lines.map(({ requestId, outcome }) => [requestId, outcome])).toEqual([
    ['request-2', 'ok'],
    ['request-3', 'deadline_exceeded'],
  ])
  expect(lines[1]).toMatchObject({ generatedTokens: 0 })
})
