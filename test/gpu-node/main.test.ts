/** The node's process from outside: what it says when it cannot start, and how it goes. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ticketHeaders } from '../support/mint-ticket.ts'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ringlet-main-'))
})
afterAll(() => rm(folder, { recursive: true }))

interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

function startNode(flags: string[]) {
  const keys = ['--ticket-keys', 'test:test-ticket-secret-of-32-characters', '--node-id', 'node-test']
  const common = ['--import', 'tsx', 'gpu-node/main.ts', '--state', folder, '--port', '0', '--threads', '1']
  const child = spawn(process.execPath, [...common, ...keys, ...flags], { stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  let heard = (): void => {}
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    heard()
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const ended: Promise<Ended> = once(child, 'close').then(([code]) => ({ code: code as number | null, stdout, stderr }))
  const ready = new Promise<string>((resolve, reject) => {
    heard = () => {
      const url = /^node ready (\S+)/m.exec(stdout)?.[1]
      if (url !== undefined) {
        resolve(url)
      }
    }
    void ended.then(() => reject(new Error(`ended before it was ready: ${stderr}`)))
  })
  ready.catch(() => undefined)
  return { child, ended, ready }
}

/** The operator's line: what pino and the progress lines write is not it. */
const lastLine = ({ stderr }: Ended): string => stderr.trim().split('\n').at(-1) ?? ''

describe('a node that cannot start says why in one line, and exits with 1', () => {
  test('a checkpoint without a file', async () => {
    const broken = join(folder, 'no-tokenizer')
    await cp('models/demo/base', broken, { recursive: true, filter: (name) => !name.endsWith('tokenizer.json') })
    const ended = await startNode(['--model', broken]).ended
    expect(ended.code).toBe(1)
    expect(lastLine(ended)).toMatch(/tokenizer\.json does not exist$/)
    expect(ended.stderr).not.toMatch(/^\s+at /m)
  })

  test('an architecture that is not supported', async () => {
    const other = join(folder, 'other')
    await cp('models/demo/base', other, { recursive: true })
    const config = JSON.parse(await readFile(join(other, 'config.json'), 'utf8')) as object
    await writeFile(
      join(other, 'config.json'),
      JSON.stringify({ ...config, model_type: 'mamba', architectures: ['MambaForCausalLM'] }),
    )
    const ended = await startNode(['--model', other]).ended
    expect(ended.code).toBe(1)
    expect(lastLine(ended)).toMatch(/mamba/i)
  })

  test('a port in use', async () => {
    const taken = createServer().listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const { port } = taken.address() as { port: number }
    const ended = await startNode(['--port', String(port)]).ended
    taken.close()
    expect(ended.code).toBe(1)
    expect(lastLine(ended)).toBe(`port ${port} on 127.0.0.1 is in use; choose another: --port N`)
  })
})

describe('a node that is told to go', () => {
  test('finishes the stream that runs, refuses new requests, and exits with 0', async () => {
    const { child, ended, ready } = startNode(['--model', 'models/demo/base', '--max-positions', '1024'])
    const url = await ready
    const post = async (path: string, body: object) =>
      fetch(url + path, { method: 'POST', headers: await ticketHeaders(), body: JSON.stringify(body) })
    const parameters = { max_new_tokens: 400, ignore_eos_token: true }
    const running = await post('/generate_stream', { inputs: 'Hello', parameters })
    child.kill('SIGTERM')
    const text = await running.text()
    expect(text.match(/^data: /gm)).toHaveLength(400)
    expect(text.endsWith(': end\n\n')).toBe(true)
    expect((await ended).code).toBe(0)
    await expect(post('/generate', { inputs: 'Hello' })).rejects.toThrow()
  })
})
