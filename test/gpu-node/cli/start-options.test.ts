import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { DEMO_MODEL, localAdapters, parseStartOptions } from '../../../gpu-node/cli/start-options.ts'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'ringlet-start-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

test('without options: two nodes with the demo model and its adapters', () => {
  const options = parseStartOptions([])
  expect(options).toMatchObject({ port: 8787, nodes: 2, model: DEMO_MODEL, nodeArguments: [] })
  const roots = options === 'help' ? [] : options.adapterRoots
  expect(localAdapters(roots)).toEqual(['orders-json', 'orders-sql', 'pirate', 'redact', 'triage'])
})

test('another model has none of the demo’s adapters; those of a folder are its folders with an adapter_config.json', () => {
  expect(parseStartOptions(['--model', 'org/name'])).toMatchObject({ model: 'org/name', adapterRoots: [] })
  mkdirSync(join(root, 'acme'))
  writeFileSync(join(root, 'acme/adapter_config.json'), '{}')
  mkdirSync(join(root, 'notes'))
  writeFileSync(join(root, 'README.md'), 'a file beside them')
  expect(parseStartOptions(['--adapter-root', root])).toMatchObject({ adapterRoots: [root] })
  expect(localAdapters([root])).toEqual(['acme'])
})

test('what only nodes understand is handed to them', () => {
  const { nodeArguments } = parseStartOptions(['--dtype', 'f32', '--threads', '2']) as { nodeArguments: string[] }
  expect(nodeArguments).toEqual(['--dtype', 'f32', '--threads', '2'])
  const more = ['--adapter-ram', '64MiB', '--max-engine-adapters', '8', '--preload', 'local:a', '--preload', 'local:b']
  expect((parseStartOptions(more) as { nodeArguments: string[] }).nodeArguments).toEqual(more)
})

test.each([
  [['--port', 'abc'], '--port is a whole number from 0 to 65535; given: abc'],
  [['--nodes', '0'], '--nodes is a whole number from 1 to 64; given: 0'],
  [['--prot', '1'], "Unknown option '--prot'"],
  [['--adapter-root', '/nonexistent/adapters'], '--adapter-root /nonexistent/adapters is no directory'],
])('%j is refused', (argv, message) => {
  expect(() => parseStartOptions(argv)).toThrow(message)
})
