import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type FakeHub, startFakeHub } from '../support/fake-hub.ts'
import { type RunningStack, startStack } from '../support/running-stack.ts'

/** What a start leaves in its state directory for the next one. */
let hub: FakeHub
let state: string
let commit: string
let stack: RunningStack | undefined

const ARGS = ['--nodes', '1', '--threads', '1']
const adapter = join(import.meta.dirname, '../../models/demo/adapters/pirate')

beforeAll(async () => {
  hub = await startFakeHub()
  state = await mkdtemp(join(tmpdir(), 'ringlet-state-'))
  const names = (await readdir(adapter)).filter((name) => name.startsWith('adapter_'))
  const files = names.map(async (name) => [name, new Uint8Array(await readFile(join(adapter, name)))] as const)
  commit = hub.commit({ id: 'desk/pirate', files: Object.fromEntries(await Promise.all(files)) })
})

afterAll(async () => {
  await stack?.stop()
  await hub?.close()
  await rm(state, { recursive: true, force: true })
})

async function start(args: string[] = [], env: NodeJS.ProcessEnv = {}): Promise<RunningStack> {
  stack = await startStack([...ARGS, ...args], { HF_ENDPOINT: hub.url, ...env }, state)
  return stack
}

async function ask(running: RunningStack, id: string) {
  const parameters = { adapter_id: id, max_new_tokens: 12 }
  const response = await running.post('/generate', { inputs: 'three red lamps for Berlin, please', parameters })
  const { generated_text: text, code } = (await response.json()) as { generated_text?: string; code?: string }
  return { status: response.status, tier: response.headers.get('x-adapter-cache'), text, code }
}

async function listed(running: RunningStack) {
  const { nodes } = (await (await running.admin('GET', '/adapters')).json()) as {
    nodes: { body: { adapters: { ref: string; tier: string; pinned: boolean }[] } }[]
  }
  return nodes[0]!.body.adapters.map(({ ref, tier, pinned }) => ({ ref, tier, pinned }))
}

test('the next start answers at once, keeps pins, and serves without the hub what it holds', async () => {
  const first = await start(['--preload', 'local:triage'])
  const online = await ask(first, 'desk/pirate')
  expect(online).toMatchObject({ status: 200, tier: 'remote' })
  expect((await first.admin('POST', '/adapters/pin', { adapter: 'hub:desk/pirate' })).status).toBe(200)
  const ref = `hub:desk/pirate@${commit}`
  expect(await listed(first)).toEqual(
    expect.arrayContaining([
      { ref, tier: 'engine', pinned: true },
      { ref: 'local:triage', tier: 'ram', pinned: true },
    ]),
  )
  await first.stop()

  const asked = hub.requests.length
  const offline = await start([], { HF_HUB_OFFLINE: '1' })
  // Before any request: the pin alone brought it back, into the engine. What --preload had pinned is pinned no more.
  await expect.poll(() => listed(offline)).toContainEqual({ ref, tier: 'engine', pinned: true })
  expect((await listed(offline)).filter(({ pinned }) => pinned)).toHaveLength(1)
  expect(await ask(offline, 'desk/pirate')).toMatchObject({ status: 200, text: online.text, tier: 'engine' })
  expect(await ask(offline, `desk/pirate@${commit}`)).toMatchObject({ status: 200, text: online.text })
  expect(await ask(offline, 'desk/other')).toMatchObject({ status: 503, code: 'adapter_home_unreachable' })
  expect(hub.requests.length).toBe(asked)
})
