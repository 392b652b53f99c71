/** A collector on loopback gets the spans of a request; what it says is checked against what the caller sent. */

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type GenerationTracer, openTraceExport } from '../../../gpu-node/http/generation-trace.ts'
import { adapterNamed, type DemoNode, startDemoNode } from '../../support/demo-node.ts'

const TRACE = '0af7651916cd43dd8448eb211c80319c'
const PARENT = 'b7ad6b7169203331'
const PROMPT = '<|user|>\nPlease send 3 red lamps to Anna in Berlin.<|end|>\n<|assistant|>\n'

interface Span {
  name: string
  traceId: string
  spanId: string
  parentSpanId: string
  startTimeUnixNano: string
  endTimeUnixNano: string
  status: { code?: number; message?: string }
  attributes: { key: string; value: { stringValue?: string; intValue?: number } }[]
}

const bodies: string[] = []
const collector = createServer((request, response) => {
  let text = ''
  request.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  request.on('end', () => {
    bodies.push(`${request.url} ${text}`)
    response.setHeader('content-type', 'application/json').end('{}')
  })
})

let node: DemoNode
let tracer: GenerationTracer

beforeAll(async () => {
  collector.listen(0, '127.0.0.1')
  await once(collector, 'listening')
  const { port } = collector.address() as AddressInfo
  tracer = await openTraceExport({ endpoint: `http://127.0.0.1:${port}/`, nodeId: 'node-1', version: '0.0.0' })
  node = await startDemoNode()
  node.built.context.tracer = tracer
})

afterAll(async () => {
  await node.close()
  collector.close()
})

test('a request is one span below its caller’s, and its time is cut into parts that follow one another', async () => {
  const ticket = { adapter: adapterNamed('pirate'), requestId: 'request-1', tenantId: 'tenant-1' }
  const body = { inputs: PROMPT, parameters: { max_new_tokens: 8 } }
  const traced = await node.post('/generate', body, ticket, { traceparent: `00-${TRACE}-${PARENT}-01` })
  expect(traced.status).toBe(200)
  await traced.json()
  const untraced = await node.post('/generate', body, {}, { traceparent: `00-${TRACE.replace('0', '1')}-${PARENT}-00` })
  await untraced.json()
  await tracer.close()

  expect(bodies).toHaveLength(1)
  const [path, text] = [bodies[0]!.slice(0, bodies[0]!.indexOf(' ')), bodies[0]!.slice(bodies[0]!.indexOf(' '))]
  expect(path).toBe('/v1/traces')
  expect(text).not.toContain('lamps')
  const { resourceSpans } = JSON.parse(text) as { resourceSpans: { scopeSpans: { spans: Span[] }[] }[] }
  const spans = resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap((scope) => scope.spans))
  const whole = spans.find(({ name }) => name === 'generate')!
  expect(whole).toMatchObject({ traceId: TRACE, parentSpanId: PARENT })
  const said = Object.fromEntries(whole.attributes.map(({ key, value }) => [key, value.stringValue ?? value.intValue]))
  expect(said).toMatchObject({
    'ringlet.request_id': 'request-1',
    'ringlet.tenant': 'tenant-1',
    'ringlet.adapter': 'local:pirate',
    'ringlet.outcome': 'ok',
    'gen_ai.usage.output_tokens': 8,
  })
  const parts = spans.filter(({ parentSpanId }) => parentSpanId === whole.spanId)
  expect(parts.map(({ name }) => name).sort()).toEqual(['decode', 'load_adapter', 'prefill', 'prepare', 'queue'])
  expect(spans).toHaveLength(1 + parts.length)
  for (const { startTimeUnixNano, endTimeUnixNano } of parts) {
    expect(BigInt(startTimeUnixNano)).toBeGreaterThanOrEqual(BigInt(whole.startTimeUnixNano))
    expect(BigInt(endTimeUnixNano)).toBeLessThanOrEqual(BigInt(whole.endTimeUnixNano))
    expect(BigInt(endTimeUnixNano)).toBeGreaterThanOrEqual(BigInt(startTimeUnixNano))
  }
})
