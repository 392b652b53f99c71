/** The bundle: nothing that a thread needs is left out of it, and a node runs from it, threads and all. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, relative, resolve } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { BUNDLE_ENTRIES, bundleNode, NODE_FLAGS } from '../../../gpu-node/cli/bundle-node.ts'
import { ticketHeaders } from '../../support/mint-ticket.ts'

const state = mkdtempSync(join(tmpdir(), 'ringlet-bundle-'))
afterAll(() => rmSync(state, { recursive: true }))

test('has every file that threads start with or import by address, under names of their own', async () => {
  const sources = resolve('gpu-node')
  const files = await readdir(sources, { recursive: true })
  const named = files.flatMap((file) => {
    if (!file.endsWith('.ts') || file === 'worker-thread.ts' || file.startsWith('cli/')) {
      return []
    }
    const text = readFileSync(join(sources, file), 'utf8').replace(/^\s*\*.*|\/\*\*.*\*\/$/gm, '')
    const urls = text.matchAll(/new URL\('(\.[^']+\.ts)', import\.meta\.url\)/g)
    return [...urls].map(([, path]) => relative(sources, resolve(sources, file, '..', path!)))
  })
  expect(named.length).toBeGreaterThan(5)
  expect(BUNDLE_ENTRIES).toEqual(expect.arrayContaining(named))
  expect(new Set(BUNDLE_ENTRIES.map((file) => basename(file))).size).toBe(BUNDLE_ENTRIES.length)
})

test('serves adapters, grammars and long texts without a TypeScript loader, and drains', async () => {
  const main = await bundleNode()
  expect(await bundleNode()).toBe(main)
  const flags = ['--model', 'models/demo/base', '--adapter-root', 'models/demo/adapters', '--max-positions', '256']
  const keys = ['--ticket-keys', 'test:test-ticket-secret-of-32-characters', '--node-id', 'node-test']
  const child = spawn(
    process.execPath,
    [...NODE_FLAGS, main, '--port', '0', '--threads', '1', '--state', state, ...keys, ...flags],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  try {
    const url = await readyUrl(child.stdout)
    const schema = { type: 'object', properties: { a: { type: 'boolean' } }, required: ['a'] }
    const parameters = {
      ...{ max_new_tokens: 40, adapter_id: 'orders-json', adapter_source: 'local' },
      response_format: { type: 'json_object', schema },
    }
    const reply = await fetch(`${url}/generate`, {
      method: 'POST',
      headers: await ticketHeaders({
        adapter: { kind: 'single', ref: { source: 'local', id: 'orders-json' } },
      }),
      body: JSON.stringify({ inputs: 'Say whether:', parameters }),
    })
    const text = ((await reply.json()) as { generated_text: string }).generated_text
    expect(JSON.parse(text)).toEqual({ a: expect.any(Boolean) })
    const spans = await fetch(`${url}/tokenize`, {
      method: 'POST',
      headers: await ticketHeaders({ action: 'tokenize' }),
      body: JSON.stringify({ inputs: '1'.repeat(9_000) }),
    })
    expect(await spans.json()).toHaveLength(9_000)
  } finally {
    child.kill('SIGTERM')
  }
  expect(await once(child, 'exit')).toEqual([0, null])
})

async function readyUrl(stdout: NodeJS.ReadableStream): Promise<string> {
  let text = ''
  for await (const chunk of stdout) {
    text += chunk
    const url = /^node ready (\S+)/m.exec(text)?.[1]
    if (url !== undefined) {
      stdout.resume()
      return url
    }
  }
  throw new Error(`the node ended before it was ready: ${text}`)
}
