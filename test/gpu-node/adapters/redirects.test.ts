import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { followRedirects } from '../../../gpu-node/adapters/sources/follow-redirects.ts'
import { createHomeFetch } from '../../../gpu-node/adapters/sources/http-home.ts'
import { isInside, isInsideAddress, lookupOutside } from '../../../gpu-node/adapters/sources/inside-address.ts'

const home = createHomeFetch()
const servers: Server[] = []

afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
})
afterAll(() => home.close())

async function serve(answer: RequestListener): Promise<number> {
  const server = createServer(answer)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

const headers = { authorization: 'Bearer mine', range: 'bytes=0-3' }

describe('a home inside, with its storage beside it', () => {
  it('leads to the storage, with the range and without the token, even when that leads back', async () => {
    const seen: (string | undefined)[][] = []
    const note = (request: Parameters<RequestListener>[0]) =>
      seen.push([request.url, request.headers.authorization, request.headers.range])
    const storage = await serve((request, response) => {
      note(request)
      response.writeHead(302, { location: `http://127.0.0.1:${hub}/back` }).end()
    })
    const hub: number = await serve((request, response) => {
      note(request)
      if (request.url === '/back') {
        response.end('whole')
      } else {
        response.writeHead(307, { location: `http://localhost:${storage}/file` }).end()
      }
    })
    const response = await home.fetch(`http://127.0.0.1:${hub}/start`, { headers })
    expect(await response.text()).toBe('whole')
    expect(seen).toEqual([
      ['/start', 'Bearer mine', 'bytes=0-3'],
      ['/file', undefined, 'bytes=0-3'],
      ['/back', undefined, 'bytes=0-3'],
    ])
  })

  it('keeps the token for a repository that has moved on the same host', async () => {
    const hub = await serve((request, response) => {
      if (request.url === '/old') {
        response.writeHead(307, { location: '/new' }).end()
      } else {
        response.end(request.headers.authorization)
      }
    })
    expect(await (await home.fetch(`http://127.0.0.1:${hub}/old`, { headers })).text()).toBe('Bearer mine')
  })

  it('that leads round in a circle is left', async () => {
    let asked = 0
    const hub = await serve((_, response) => {
      asked++
      response.writeHead(302, { location: '/again' }).end()
    })
    await expect(home.fetch(`http://127.0.0.1:${hub}/`)).rejects.toThrow('more than 5 redirects')
    expect(asked).toBe(6)
  })
})

describe('a home outside', () => {
  /** A hub whose one answer is a redirect; everything else says where it was asked. */
  const asked: { url: string; outsideOnly: boolean }[] = []
  const from = (origin: string, location: string) => {
    asked.length = 0
    const fetch = followRedirects({
      isInside: async () => false,
      ask: async (url, _, outsideOnly) => {
        asked.push({ url: url.href, outsideOnly })
        return asked.length === 1 ? new Response(null, { status: 302, headers: { location } }) : new Response('file')
      },
    })
    return fetch(`${origin}/file`)
  }

  it.each([
    'https://127.0.0.1/admin',
    'https://169.254.169.254/latest/meta-data/',
    'https://[::1]:8080/',
    'https://[::ffff:10.0.0.1]/',
    'https://2130706433/',
    'https://0x7f.1/',
  ])('does not lead to %s', async (location) => {
    await expect(from('https://hub.example', location)).rejects.toThrow('to an address inside')
    expect(asked).toHaveLength(1)
  })

  it('leads to other hosts by connections that must lead out', async () => {
    expect(await (await from('https://hub.example', 'https://cdn.example/x')).text()).toBe('file')
    expect(asked).toEqual([
      { url: 'https://hub.example/file', outsideOnly: false },
      { url: 'https://cdn.example/x', outsideOnly: true },
    ])
  })

  it('with TLS leads nowhere without, and to nothing but HTTP', async () => {
    await expect(from('https://hub.example', 'http://cdn.example/x')).rejects.toThrow('from https: to http:')
    await expect(from('http://hub.example', 'file:///etc/passwd')).rejects.toThrow('to file:')
    await expect(from('https://hub.example', 'https://')).rejects.toThrow('to no address')
  })

  it('whose name for another host resolves to an address inside gets no connection', async () => {
    const found = await new Promise((resolve) => lookupOutside('localhost', {}, resolve))
    expect(found).toMatchObject({ code: 'EINSIDE' })
  })
})

it('addresses inside are told from those outside', async () => {
  const inside = ['0.0.0.0', '10.1.2.3', '100.64.0.1', '127.0.0.1', '169.254.169.254', '172.31.0.1', '192.168.1.1']
  const insideToo = ['224.0.0.1', '255.255.255.255', '::', '::1', '[::1]', 'fd00::1', 'fe80::1', '::ffff:127.0.0.1']
  for (const address of [...inside, ...insideToo, '::ffff:7f00:1', '64:ff9b::7f00:1', '::127.0.0.1']) {
    expect(isInsideAddress(address), address).toBe(true)
  }
  for (const address of ['1.1.1.1', '172.32.0.1', '100.128.0.1', '2606:4700::1', '::ffff:1.1.1.1', 'hub.example']) {
    expect(isInsideAddress(address), address).toBe(false)
  }
  expect(await isInside('localhost')).toBe(true)
})
