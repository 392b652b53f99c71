/**
 * A hub on loopback with the endpoints that @huggingface/hub calls, as the real one answers them: private and gated
 * repositories, LFS files named by SHA-256, ranges; and with failures that a test orders.
 */

import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface FakeRepo {
  id: string
  /** Who may read it; without the list everybody. */
  tokens?: string[]
  /** The list of files is public, the files are for `tokens`. */
  gated?: boolean
  files: Record<string, Uint8Array>
}

interface Commit {
  sha: string
  files: Record<string, Uint8Array>
}

export interface FakeHub {
  url: string
  /** Adds a repository, or a commit to it; returns the commit. */
  commit(repo: FakeRepo): string
  remove(id: string): void
  revoke(id: string, token: string): void
  /** `GET /resolve/` of whole files and ranges, without the probe of one byte: `id/path start-end`. */
  transfers: string[]
  /** All requests: method and path. */
  requests: string[]
  /** Cuts that many of the next transfers after half of their bytes. */
  breakTransfers(count: number): void
  /** Damages the bytes of the next transfers. */
  damageTransfers(count: number): void
  /** Answers this status to the next requests. */
  failRequests(count: number, status: number): void
  /** Holds transfers of this repository until the function that it returns is called. */
  stall(id: string): () => void
  close(): Promise<void>
}

/** Files above this size are in LFS, as `*.safetensors` and `*.bin` always are. */
const isLfs = (path: string) => /\.(safetensors|bin)$/.test(path)

export async function startFakeHub(): Promise<FakeHub> {
  const repos = new Map<string, { repo: FakeRepo; commits: Commit[] }>()
  const stalled = new Map<string, Promise<void>>()
  const plan = { breaks: 0, damages: 0, fails: 0, failStatus: 500 }
  const transfers: string[] = []
  const requests: string[] = []
  const server = createServer((request, response) => {
    requests.push(`${request.method} ${request.url}`)
    if (plan.fails > 0) {
      plan.fails--
      response.writeHead(plan.failStatus).end()
      return
    }
    void answer(request, response)
  })

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, 'http://hub')
    const api = /^\/api\/models\/(.+?)\/(tree|revision)\/([^/]+)$/.exec(url.pathname)
    const file = /^\/(.+?)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname)
    const id = api?.[1] ?? file?.[1]
    const known = repos.get(id ?? '')
    const token = request.headers.authorization?.replace(/^Bearer /, '')
    const allowed = known !== undefined && (known.repo.tokens === undefined || known.repo.tokens.includes(token ?? ''))
    if (known === undefined || (!allowed && !(known.repo.gated && api !== null))) {
      // The real hub answers 401 for what does not exist and for what is private.
      const code = known?.repo.gated ? 'GatedRepo' : 'RepoNotFound'
      response.writeHead(known?.repo.gated ? 403 : 401, { 'x-error-code': code, 'content-type': 'application/json' })
      response.end(JSON.stringify({ error: 'Repository not found' }))
      return
    }
    const revision = decodeURIComponent(api?.[3] ?? file?.[2] ?? '')
    const commit = ['main', 'HEAD'].includes(revision)
      ? known.commits.at(-1)
      : known.commits.find(({ sha }) => sha === revision)
    if (commit === undefined) {
      response.writeHead(404, { 'x-error-code': 'RevisionNotFound' }).end()
      return
    }
    if (api?.[2] === 'revision') {
      json(response, {
        _id: '1',
        id,
        sha: commit.sha,
        private: known.repo.tokens !== undefined && !known.repo.gated,
        gated: known.repo.gated ?? false,
        downloads: 0,
        likes: 0,
        lastModified: '2026-01-01T00:00:00.000Z',
      })
      return
    }
    if (api?.[2] === 'tree') {
      json(
        response,
        Object.entries(commit.files).map(([path, bytes]) => treeEntry(path, bytes)),
      )
      return
    }
    await sendFile(request, response, id!, file![3]!, commit)
  }

  async function sendFile(
    request: IncomingMessage,
    response: ServerResponse,
    id: string,
    path: string,
    commit: Commit,
  ) {
    const bytes = commit.files[path]
    if (bytes === undefined) {
      response.writeHead(404, { 'x-error-code': 'EntryNotFound' }).end()
      return
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
    const start = Number(range?.[1] ?? 0)
    const end = Math.min(Number(range?.[2] ?? bytes.length - 1) + 1, bytes.length)
    const isProbe = range !== null && end - start <= 1
    if (!isProbe) {
      transfers.push(`${id}/${path} ${start}-${end}`)
      await stalled.get(id)
    }
    response.writeHead(range === null ? 200 : 206, {
      'content-length': end - start,
      etag: `"${isLfs(path) ? sha256(bytes) : gitBlob(bytes)}"`,
      'x-repo-commit': commit.sha,
      'accept-ranges': 'bytes',
      ...(range === null ? {} : { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` }),
    })
    const part = Buffer.from(bytes.subarray(start, end))
    if (!isProbe && plan.breaks > 0) {
      plan.breaks--
      response.write(part.subarray(0, Math.ceil(part.length / 2)), () => response.destroy())
      return
    }
    if (!isProbe && plan.damages > 0) {
      plan.damages--
      part[part.length - 1]! ^= 1
    }
    response.end(part)
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    transfers,
    requests,
    commit: (repo) => {
      const known = repos.get(repo.id) ?? { repo, commits: [] }
      known.repo = repo
      const text = Object.entries(repo.files).map(([path, bytes]) => `${path} ${sha256(bytes)}`)
      const sha = createHash('sha1')
        .update(`${known.commits.length} ${text.join('\n')}`)
        .digest('hex')
      known.commits.push({ sha, files: repo.files })
      repos.set(repo.id, known)
      return sha
    },
    remove: (id) => repos.delete(id),
    revoke: (id, token) => {
      const { repo } = repos.get(id)!
      repo.tokens = repo.tokens!.filter((other) => other !== token)
    },
    breakTransfers: (count) => {
      plan.breaks = count
    },
    damageTransfers: (count) => {
      plan.damages = count
    },
    failRequests: (count, status) => {
      plan.fails = count
      plan.failStatus = status
    },
    stall: (id) => {
      let go = () => {}
      stalled.set(
        id,
        new Promise((resolve) => {
          go = resolve
        }),
      )
      return () => {
        stalled.delete(id)
        go()
      }
    },
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

function treeEntry(path: string, bytes: Uint8Array) {
  const base = { type: 'file', path, size: bytes.length, oid: gitBlob(bytes) }
  return isLfs(path) ? { ...base, lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 134 } } : base
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

function gitBlob(bytes: Uint8Array): string {
  return createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex')
}
