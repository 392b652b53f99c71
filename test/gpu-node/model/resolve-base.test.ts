import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { ModelError } from '../../../gpu-node/model/model-error.ts'
import { type BaseHub, resolveBase } from '../../../gpu-node/model/resolve-base.ts'
import { type FakeHub, startFakeHub } from '../../support/fake-hub.ts'
import { LLAMA_BASE, temporaryDirectory } from '../../support/golden-fixtures.ts'

const CHECKPOINT = Object.fromEntries(
  readdirSync(LLAMA_BASE).map((name) => [name, readFileSync(join(LLAMA_BASE, name))]),
)
const files = {
  ...CHECKPOINT,
  'README.md': Buffer.from('not wanted'),
  'consolidated.safetensors': Buffer.from('nor this'),
}

let hub: FakeHub
let state: Awaited<ReturnType<typeof temporaryDirectory>>
let options: BaseHub
let warnings: string[]
beforeEach(async () => {
  hub = await startFakeHub()
  state = await temporaryDirectory()
  warnings = []
  options = {
    endpoint: hub.url,
    token: undefined,
    offline: false,
    folder: join(state.path, 'bases'),
    fetch,
    signal: new AbortController().signal,
    warn: (text) => warnings.push(text),
    sleep: async () => {},
  }
})
afterEach(async () => {
  await hub.close()
  await state.remove()
})

describe('--model', () => {
  test('as a directory is that directory, and the hub is not asked', async () => {
    expect(await resolveBase(LLAMA_BASE, options)).toBe(LLAMA_BASE)
    await mkdir(join(state.path, 'org', 'name'), { recursive: true })
    const inside = join(state.path, 'org', 'name')
    expect(await resolveBase(inside, options)).toBe(inside)
    expect(hub.requests).toEqual([])
  })

  test('as a hub id fetches what a checkpoint needs, once, and tells how far it is', async () => {
    const commit = hub.commit({ id: 'org/base', files })
    const progress: [number, number][] = []
    const onProgress = (received: number, total: number) => progress.push([received, total])
    const directory = await resolveBase('org/base', { ...options, onProgress })
    expect(directory).toBe(join(state.path, 'bases', 'org--base', commit))
    expect(readdirSync(directory).sort()).toEqual(Object.keys(CHECKPOINT).sort())
    const total = Object.values(CHECKPOINT).reduce((sum, bytes) => sum + bytes.length, 0)
    expect(progress.at(-1)).toEqual([total, total])
    const checkpoint = await openCheckpoint(directory)
    expect(checkpoint.spec.architecture).toBe('LlamaForCausalLM')
    await checkpoint.close()
    const { length } = hub.transfers
    expect(await resolveBase('org/base', options)).toBe(directory)
    expect(hub.transfers).toHaveLength(length)
  })

  test('with a revision stays at it while the repository moves on', async () => {
    const first = hub.commit({ id: 'org/base', files })
    const second = hub.commit({ id: 'org/base', files: { ...files, 'generation_config.json': Buffer.from('{}') } })
    expect(await resolveBase('org/base', options)).toContain(second)
    expect(await resolveBase(`org/base@${first}`, options)).toContain(first)
    hub.requests.length = 0
    expect(await resolveBase(`org/base@${first}`, options)).toContain(first)
    expect(hub.requests).toEqual([])
  })

  test('takes an index and its shards where the weights are sharded', async () => {
    const { 'model.safetensors': whole, ...rest } = CHECKPOINT
    const shards = { 'model-00001-of-00001.safetensors': whole!, 'model.safetensors.index.json': Buffer.from('{}') }
    hub.commit({ id: 'org/sharded', files: { ...rest, ...shards } })
    const directory = await resolveBase('org/sharded', options)
    expect(readdirSync(directory)).toEqual(expect.arrayContaining(Object.keys(shards)))
  })

  test('goes on where a broken transfer stopped', async () => {
    hub.commit({ id: 'org/base', files })
    hub.breakTransfers(3)
    const directory = await resolveBase('org/base', options)
    expect(readFileSync(join(directory, 'model.safetensors'))).toEqual(CHECKPOINT['model.safetensors'])
    expect(hub.transfers.some((transfer) => /\/(\S+) [1-9]\d*-/.test(transfer))).toBe(true)
  })

  test('given up half way leaves no directory, and the next start takes it on', async () => {
    const sha = hub.commit({ id: 'org/base', files })
    const go = hub.stall('org/base')
    const start = new AbortController()
    const given = resolveBase('org/base', { ...options, signal: start.signal })
    await expect.poll(() => hub.transfers.length).toBeGreaterThan(0)
    start.abort(new Error('the node stops'))
    await expect(given).rejects.toThrow('the node stops')
    expect(existsSync(join(options.folder, 'org--base', sha))).toBe(false)
    go()
    expect(await resolveBase('org/base', options)).toContain(sha)
  })

  test('refuses damaged bytes, and fetches them anew at the next start', async () => {
    hub.commit({ id: 'org/base', files })
    hub.damageTransfers(1)
    await expect(resolveBase('org/base', options)).rejects.toThrow(/org\/base could not be fetched: .* arrived damaged/)
    const directory = await resolveBase('org/base', options)
    for (const [name, bytes] of Object.entries(CHECKPOINT)) {
      expect(readFileSync(join(directory, name))).toEqual(bytes)
    }
  })

  test('of a private repository needs its token, of any form', async () => {
    hub.commit({ id: 'org/private', files, tokens: ['secret of any form'] })
    const refused: unknown = await resolveBase('org/private', options).catch((error: unknown) => error)
    expect(refused).toBeInstanceOf(ModelError)
    expect((refused as Error).message).toBe('the hub has no model org/private, or not for this token (HF_TOKEN)')
    expect(await resolveBase('org/private', { ...options, token: 'secret of any form' })).toContain('org--private')
  })

  test('is served from disk while the hub is offline or away', async () => {
    await expect(resolveBase('org/base', { ...options, offline: true })).rejects.toThrow(/was not fetched before/)
    hub.commit({ id: 'org/base', files })
    const directory = await resolveBase('org/base', options)
    hub.requests.length = 0
    expect(await resolveBase('org/base', { ...options, offline: true })).toBe(directory)
    expect(hub.requests).toEqual([])
    hub.failRequests(1000, 503)
    expect(await resolveBase('org/base', options)).toBe(directory)
    expect(warnings).toEqual([expect.stringMatching(/can't be reached; serving org\/base at [0-9a-f]{40}/)])
    await expect(resolveBase('org/never', options)).rejects.toThrow(/org\/never could not be fetched/)
    await hub.close()
    await expect(resolveBase('org/never', options)).rejects.toThrow(/org\/never .* it does not answer \(ECONNREFUSED\)/)
  })

  test('is fetched once by nodes that start together, and after one that died', async () => {
    const sha = hub.commit({ id: 'org/base', files })
    const place = join(state.path, 'bases', 'org--base')
    await mkdir(place, { recursive: true })
    // No process has this id: Linux gives out at most 2^22.
    writeFileSync(join(place, `${sha}.lock`), '4194305')
    const sleep = () => new Promise<void>((resolve) => setImmediate(resolve))
    const both = await Promise.all([1, 2].map(() => resolveBase('org/base', { ...options, sleep })))
    expect(new Set(both)).toEqual(new Set([join(place, sha)]))
    expect(hub.transfers.filter((it) => it.includes('model.safetensors'))).toHaveLength(1)
    expect(readdirSync(place).sort()).toEqual([sha, 'refs'].sort())
  })

  test.each<[string, RegExp]>([
    ['nothing-here', /no directory here, and no hub id/],
    ['./not/there', /no directory here, and no hub id/],
    ['/not/there', /no directory here, and no hub id/],
    ['org/../name', /no hub id/],
    ['org/name@a..b', /no hub id/],
    ['a/b/c', /no hub id/],
    ['org/name', /the hub has no model org\/name/],
  ])('%s is refused in one line', async (model, message) => {
    const error: unknown = await resolveBase(model, options).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(ModelError)
    expect((error as Error).message).toMatch(message)
    expect((error as Error).message).not.toContain('\n')
  })

  test.each<[string, Record<string, Uint8Array>, RegExp]>([
    ['no config', { 'model.safetensors': Buffer.from('x') }, /has no config.json/],
    [
      'no safetensors',
      { 'config.json': Buffer.from('{}'), 'pytorch_model.bin': Buffer.from('x') },
      /has no model.safe/,
    ],
  ])('a repository with %s is refused', async (_, incomplete, message) => {
    hub.commit({ id: 'org/half', files: incomplete })
    await expect(resolveBase('org/half', options)).rejects.toThrow(message)
  })
})
