import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { mergeExpositions } from '../../../edge/admin/fleet-metrics.ts'
import { metricsJson } from '../../../edge/admin/metrics-json.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

const TEXT = [
  '# HELP requests_total Requests',
  '# TYPE requests_total counter',
  'requests_total{route="/generate",code="ok"} 3',
  '',
  '# HELP wait_seconds Waits',
  '# TYPE wait_seconds histogram',
  'wait_seconds_bucket{le="+Inf"} 2',
  'wait_seconds_sum 0.5',
  '',
].join('\n')

describe('two nodes’ metrics as one', () => {
  test('each sample names its node, each family is headed once', () => {
    const merged = mergeExpositions([
      { nodeId: 'a', text: TEXT },
      { nodeId: 'b"', text: TEXT },
      { nodeId: 'gone', text: undefined },
    ])
    expect(merged.split('\n')).toEqual([
      '# HELP ringlet_node_up 1 where the node told its metrics',
      '# TYPE ringlet_node_up gauge',
      'ringlet_node_up{node="a"} 1',
      'ringlet_node_up{node="b\\""} 1',
      'ringlet_node_up{node="gone"} 0',
      '# HELP requests_total Requests',
      '# TYPE requests_total counter',
      'requests_total{node="a",route="/generate",code="ok"} 3',
      'requests_total{node="b\\"",route="/generate",code="ok"} 3',
      '# HELP wait_seconds Waits',
      '# TYPE wait_seconds histogram',
      'wait_seconds_bucket{node="a",le="+Inf"} 2',
      'wait_seconds_sum{node="a"} 0.5',
      'wait_seconds_bucket{node="b\\"",le="+Inf"} 2',
      'wait_seconds_sum{node="b\\""} 0.5',
      '',
    ])
  })
})

test('as LoRAX’s JSON the nodes’ numbers are added up', () => {
  const parts = [
    { nodeId: 'a', text: TEXT },
    { nodeId: 'b', text: TEXT },
    { nodeId: 'gone', text: undefined },
  ]
  expect(metricsJson(parts)).toEqual({
    requests_total: { type: 'counter', data: [{ key: 'requests_total{route="/generate",code="ok"}', value: 6 }] },
    wait_seconds: {
      type: 'histogram',
      data: [
        { key: 'wait_seconds_bucket{le="+Inf"}', value: 4 },
        { key: 'sum', value: 1 },
      ],
    },
  })
})

describe('GET /metrics', () => {
  let world: EdgeWorld
  beforeAll(async () => {
    world = await startEdgeWorld()
  })
  afterAll(() => world.close())

  test('is the operator’s: a tenant is refused, the admin token reads every node', async () => {
    const { token } = await world.createTenant({ name: 'curious' })
    expect((await world.get('/metrics', token.token)).status).toBe(403)
    for (const node of world.nodes) {
      node.answer = (_request, response) => {
        response.end(TEXT)
      }
    }
    const reply = await world.get('/metrics', world.vars.RINGLET_ADMIN_TOKEN ?? '')
    expect([reply.status, reply.headers.get('content-type')]).toEqual([200, 'text/plain; version=0.0.4; charset=utf-8'])
    const text = await reply.text()
    for (const { nodeId } of world.nodes) {
      expect(text).toContain(`ringlet_node_up{node="${nodeId}"} 1`)
      expect(text).toContain(`requests_total{node="${nodeId}",route="/generate",code="ok"} 3`)
    }
  })

  test('is JSON to who accepts that', async () => {
    const authorization = `Bearer ${world.vars.RINGLET_ADMIN_TOKEN}`
    const headers = { authorization, accept: 'application/json' }
    const reply = await fetch(`${world.url}/metrics`, { headers })
    expect(reply.headers.get('content-type')).toContain('application/json')
    const { wait_seconds } = (await reply.json()) as { wait_seconds: { data: object[] } }
    expect(wait_seconds.data).toContainEqual({ key: 'sum', value: 0.5 * world.nodes.length })
  })
})
