import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { startFakeHub } from '../../support/fake-hub.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

const SHA = 'a'.repeat(40)
const FILES = { 'adapter_config.json': new TextEncoder().encode('{}') }

interface Home {
  url: string
  asked: { path: string; authorization: string | undefined }[]
  close: () => Promise<void>
}
type Ask = (id: string, token?: string) => Promise<Response>

/** A home that answers as the test says; remembers each request's path and authorization. */
async function startHome(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Home> {
  const asked: Home['asked'] = []
  const server = createServer((request, response) => {
    asked.push({ path: request.url ?? '', authorization: request.headers.authorization })
    answer(request, response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

async function startWorld(vars: Record<string, string>): Promise<{ world: EdgeWorld; ask: Ask }> {
  const world = await startEdgeWorld({ vars })
  const { token } = await world.createTenant({ name: 'caller' })
  const ask: Ask = (adapter_id, api_token) =>
    world.post('/generate', token.token, {
      inputs: 'x',
      parameters: { adapter_id, ...(api_token ? { api_token } : {}) },
    })
  return { world, ask }
}

const tell = (response: ServerResponse, info: object) =>
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(info))

describe('a hub that answers strangely', () => {
  /** What it answers, by repository. */
  const answers: Record<string, (response: ServerResponse, path: string) => void> = {
    'renamed/old': (response, path) => {
      response.writeHead(307, { location: path.replace('/renamed/old/', '/renamed/new/') }).end()
    },
    'renamed/new': (response) => tell(response, { sha: SHA, private: true, gated: false }),
    'stolen/name': (response, path) => {
      response.writeHead(307, { location: `${stranger.url}${path}` }).end()
    },
    'says/nothing': () => {},
    'says/html': (response) => response.writeHead(200).end('<html>'),
    'says/branch': (response) => tell(response, { sha: 'main', private: false }),
    'says/much': (response) => tell(response, { sha: SHA, padding: 'x'.repeat(2 ** 21) }),
    'says/later': (response) => response.writeHead(429).end(),
    'says/little': (response) => tell(response, { sha: SHA }),
  }
  let stranger: Home
  let hub: Home
  let world: EdgeWorld
  let ask: Ask
  beforeAll(async () => {
    stranger = await startHome((_, response) => tell(response, { sha: SHA, private: false }))
    hub = await startHome((request, response) => {
      const path = request.url ?? ''
      const id = /^\/api\/models\/(.+)\/revision\//.exec(path)?.[1] ?? ''
      answers[id]?.(response, path)
    })
    ;({ world, ask } = await startWorld({ HF_ENDPOINT: hub.url, RINGLET_HOME_TIMEOUT_MS: '500' }))
  })
  afterAll(() => Promise.all([world.close(), hub.close(), stranger.close()]))

  test('a redirect to a new name on itself is followed', async () => {
    expect((await ask('renamed/old', 'home-token')).status).toBe(200)
    const { path, authorization } = hub.asked.at(-1)!
    expect([path, authorization]).toEqual([expect.stringContaining('/renamed/new/'), 'Bearer home-token'])
  })

  test.each(['stolen/name', 'says/nothing', 'says/html', 'says/branch', 'says/much', 'says/later'])(
    '%s is 503, and no node is asked',
    async (id) => {
      const before = world.nodes[0]!.generated().length
      const response = await ask(id, 'home-token')
      expect([response.status, await response.json()]).toMatchObject([503, { code: 'adapter_home_unreachable' }])
      expect(world.nodes[0]!.generated().length).toBe(before)
    },
  )

  test('no other host ever saw the token', () => {
    expect(stranger.asked).toEqual([])
  })

  test('a repository that is not said to be public is asked about again', async () => {
    const asked = () => hub.asked.filter(({ path }) => path.includes('/says/little/')).length
    for (let i = 1; i <= 2; i++) {
      expect((await ask('says/little')).status).toBe(200)
      expect(asked()).toBe(i)
    }
  })
})

describe('how long a verdict is used again', () => {
  const closers: (() => Promise<void>)[] = []
  afterEach(async () => {
    await Promise.all(closers.splice(0).map((close) => close()))
  })

  test('a public one not at all, if the operator says so', async () => {
    const hub = await startFakeHub()
    closers.push(hub.close)
    hub.commit({ id: 'org/public', files: FILES })
    const { world, ask } = await startWorld({ HF_ENDPOINT: hub.url, RINGLET_PUBLIC_TTL_SECONDS: '0' })
    closers.push(world.close)
    await ask('org/public')
    await ask('org/public')
    expect(hub.requests.length).toBe(2)
  })

  test('a public one no longer than it was allowed: then the hub is asked, and its new commit answers', async () => {
    const hub = await startFakeHub()
    closers.push(hub.close)
    hub.commit({ id: 'org/moving', files: FILES })
    const { world, ask } = await startWorld({ HF_ENDPOINT: hub.url, RINGLET_PUBLIC_TTL_SECONDS: '1' })
    closers.push(world.close)
    await ask('org/moving')
    const next = hub.commit({ id: 'org/moving', files: { ...FILES, more: new Uint8Array(1) } })
    await expect
      .poll(
        async () => {
          await ask('org/moving')
          return world.nodes[0]!.generated().at(-1)!.ticket.adapter
        },
        { timeout: 3_000, interval: 200 },
      )
      .toMatchObject({ ref: { revision: next } })
  })

  test('a private one, if the operator allows it, for the same token alone', async () => {
    const hub = await startFakeHub()
    closers.push(hub.close)
    hub.commit({ id: 'alice/secret', tokens: ['a-token'], files: FILES })
    const { world, ask } = await startWorld({ HF_ENDPOINT: hub.url, RINGLET_PRIVATE_TTL_SECONDS: '60' })
    closers.push(world.close)
    for (let i = 0; i < 2; i++) {
      expect((await ask('alice/secret', 'a-token')).status).toBe(200)
    }
    expect(hub.requests.length).toBe(1)
    expect((await ask('alice/secret', 'b-token')).status).toBe(404)
    expect((await ask('alice/secret')).status).toBe(404)
    expect(hub.requests.length).toBe(3)
  })
})
