import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { runRinglet } from '../../../gpu-node/cli/run-ringlet.ts'

const LISTING = {
  ref: 'local:pirate',
  refs: ['local:pirate', 'hub:org/pirate@abc'],
  digest: '0107f31ac25ee3216c5f731db45f26ef',
  rank: 16,
  bytes: 3 * 2 ** 20,
  tier: 'engine',
  leases: 1,
  pinned: true,
  lastUsed: Date.UTC(2026, 0, 2, 3, 4, 5),
}
const NODE_ANSWERS = [
  { node: 'near', status: 200, body: { adapters: [LISTING] } },
  { node: 'far', status: 503, body: { error: 'this node takes no new requests' } },
  { node: 'gone', status: 504, body: null },
]

let edge: Server
let out: string[]
let err: string[]

beforeEach(async () => {
  edge = createServer((request, response) => {
    const found = request.url === '/admin/adapters'
    const body = found
      ? { nodes: NODE_ANSWERS }
      : { error: 'Input validation error: there is no such thing', code: 'x' }
    response.writeHead(found ? 200 : 404, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  })
  await new Promise<void>((listening) => {
    edge.listen(0, '127.0.0.1', listening)
  })
  vi.stubEnv('RINGLET_EDGE_URL', `http://127.0.0.1:${(edge.address() as AddressInfo).port}`)
  vi.stubEnv('RINGLET_ADMIN_TOKEN', 'an-admin-token')
  vi.stubEnv('NO_COLOR', '1')
  out = []
  err = []
  vi.spyOn(console, 'log').mockImplementation((line) => void out.push(String(line)))
  vi.spyOn(console, 'error').mockImplementation((line) => void err.push(String(line)))
})

afterEach(async () => {
  vi.unstubAllEnvs()
  vi.restoreAllMocks()
  await new Promise((closed) => edge.close(closed))
})

test.each([
  [[], 'ringlet tenant|alias'],
  [['tenant', '--help'], 'ringlet tenant create|update'],
  [['tenant', 'create', '--help'], 'ringlet tenant create [OPTIONS] <TENANT>'],
  [['nodes', 'pin', 'x', '-h'], 'ringlet nodes pin [OPTIONS] <ADAPTER>'],
])('%j prints how it is used', async (words, usage) => {
  expect(await runRinglet(words)).toBe(0)
  expect(out.join('\n')).toContain(`USAGE ${usage}`)
  expect(err).toEqual([])
})

test.each([
  [['frob'], 'ringlet: Unknown command frob (ringlet --help tells more)'],
  [['tenant', 'frob'], 'ringlet: Unknown command frob (ringlet tenant --help tells more)'],
  [
    ['alias', 'set', 'a'],
    'ringlet: Missing required positional argument: ADAPTER (ringlet alias set --help tells more)',
  ],
  [['tenant', 'create', 'x', '--rmp', '5'], 'ringlet: unknown option --rmp'],
  [['tenant', 'show', 'nobody'], 'ringlet: there is no such thing'],
])('%j says in one line what is wrong', async (words, line) => {
  expect(await runRinglet(words)).toBe(1)
  expect(err).toEqual([line])
})

test('an edge that is not there is named, with the reason', async () => {
  await new Promise((closed) => edge.close(closed))
  expect(await runRinglet(['nodes', 'list'])).toBe(1)
  expect(err).toEqual([`ringlet: the edge ${process.env.RINGLET_EDGE_URL} does not answer: ECONNREFUSED`])
})

test('adapters are a table, and nodes that did not answer say why', async () => {
  expect(await runRinglet(['nodes', 'adapters'])).toBe(0)
  expect(out).toEqual([
    expect.stringMatching(/^NODE +ADAPTER/),
    expect.stringMatching(
      /^near +local:pirate, hub:org\/pirate@abc +engine +16 +3\.0 MiB +pinned, in use +2026-01-02T03:04:05\.000Z +0107f31ac25ee321$/,
    ),
    'far: this node takes no new requests',
    'gone: answered 504',
  ])
})
