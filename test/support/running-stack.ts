/** `npm start` as a child process on free ports with a state directory of its own, for tests that use the whole system. */

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { DevJson } from '../../gpu-node/cli/dev-state.ts'

const repository = resolve(import.meta.dirname, '../..')

export interface RunningStack {
  dev: DevJson
  stateDir: string
  /** What it printed so far. */
  output: () => string
  /** Resolves when `npm start` printed a line that matches, now or later. */
  printed: (pattern: RegExp) => Promise<void>
  /** Reads dev.json again: a restarted node has another pid and URL. */
  reread: () => Promise<DevJson>
  /** A request to the edge with the demo tenant's token. */
  post: (path: string, body: object, headers?: Record<string, string>) => Promise<Response>
  admin: (method: string, path: string, body?: object) => Promise<Response>
  /** SIGTERM, and wait for its end; resolves to the exit code. */
  stop: () => Promise<number | null>
}

/** `kept`: a state directory that was there before and stays. */
export async function startStack(
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
  kept?: string,
): Promise<RunningStack> {
  const stateDir = kept ?? (await mkdtemp(join(tmpdir(), 'ringlet-e2e-')))
  const child = spawn('npm', ['start', '--', '--port', '0', '--state', stateDir, ...args], {
    cwd: repository,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = new Output(child)
  await output.matches(/Ctrl-C ends it/)
  const reread = async () => JSON.parse(await readFile(join(stateDir, 'dev.json'), 'utf8')) as DevJson
  const dev = await reread()
  const call = (token: string, method: string, path: string, body?: object, headers: Record<string, string> = {}) =>
    fetch(`${dev.edgeUrl}${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
      body: body === undefined ? null : JSON.stringify(body),
    })
  return {
    dev,
    stateDir,
    output: () => output.text,
    printed: (pattern) => output.matches(pattern),
    reread,
    post: (path, body, headers) => call(dev.tenantToken, 'POST', path, body, headers),
    admin: (method, path, body) => call(dev.adminToken, method, `/admin${path}`, body),
    async stop() {
      child.kill('SIGTERM')
      const code = await output.ended
      if (kept === undefined) {
        await rm(stateDir, { recursive: true, force: true })
      }
      return code
    },
  }
}

class Output {
  text = ''
  readonly ended: Promise<number | null>
  readonly #waiting = new Set<() => void>()
  #exited = false

  constructor(child: ChildProcess) {
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (chunk: string) => {
        this.text += chunk
        this.#wake()
      })
    }
    this.ended = new Promise((resolve) => child.once('exit', (code) => resolve(code)))
    void this.ended.then(() => {
      this.#exited = true
      this.#wake()
    })
  }

  matches(pattern: RegExp): Promise<void> {
    return new Promise((found, failed) => {
      const look = () => {
        if (pattern.test(this.text)) {
          this.#waiting.delete(look)
          found()
        } else if (this.#exited) {
          failed(new Error(`ended before it printed ${pattern}:\n${this.text}`))
        }
      }
      this.#waiting.add(look)
      look()
    })
  }

  #wake(): void {
    for (const look of [...this.#waiting]) {
      look()
    }
  }
}
