/** Predibase's adapter API on loopback: versions of repositories with their state, and the older endpoint for the latest. */

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface FakeVersion {
  repo: string
  version: number
  status: string
  /** Where its weights lie in the bucket; absent while there are none. */
  adapterPath?: string
  tokens: string[]
}

export interface FakePredibase {
  url: string
  versions: FakeVersion[]
  /** Paths of the older endpoint: `uuid/bestRunID`, by repo. */
  legacy: Map<string, { uuid: string; bestRunID?: string; versionNumber: number; tokens: string[] }>
  requests: string[]
  close(): Promise<void>
}

export async function startFakePredibase(): Promise<FakePredibase> {
  const versions: FakeVersion[] = []
  const legacy: FakePredibase['legacy'] = new Map()
  const requests: string[] = []
  const server = createServer((request, response) => {
    requests.push(`${request.method} ${request.url}`)
    const url = new URL(request.url!, 'http://predibase')
    const token = request.headers.authorization?.replace(/^Bearer /, '') ?? ''
    const reply = (status: number, value: unknown) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
    const current = /^\/v2\/repos\/([^/]+)\/version\/([^/]+)$/.exec(url.pathname)
    if (current !== null) {
      const [repo, version] = [decodeURIComponent(current[1]!), decodeURIComponent(current[2]!)]
      const found = versions.find(
        (it) => it.repo === repo && String(it.version) === version && it.tokens.includes(token),
      )
      if (found === undefined) {
        reply(404, { error: 'not found' })
        return
      }
      reply(200, { status: found.status, adapterPath: found.adapterPath ?? null, tag: found.version })
      return
    }
    const older = /^\/v1\/models\/version\/name\/([^/]+)$/.exec(url.pathname)
    const found = older === null ? undefined : legacy.get(decodeURIComponent(older[1]!))
    const wanted = url.searchParams.get('version')
    if (found?.tokens.includes(token) && (wanted === null || wanted === String(found.versionNumber))) {
      const { tokens: _, ...model } = found
      reply(200, model)
      return
    }
    reply(404, { error: 'not found' })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    versions,
    legacy,
    requests,
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
