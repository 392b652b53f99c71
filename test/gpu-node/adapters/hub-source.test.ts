import { readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { AdapterSourceReader } from '../../../gpu-node/adapters/sources/adapter-source.ts'
import { downloadAdapter } from '../../../gpu-node/adapters/sources/download.ts'
import { createHomeFetch } from '../../../gpu-node/adapters/sources/http-home.ts'
import { createHubSource } from '../../../gpu-node/adapters/sources/hub-source.ts'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { type FakeHub, startFakeHub } from '../../support/fake-hub.ts'
import { adapterFiles, temporaryDirectory, variant } from '../../support/golden-fixtures.ts'
import { testAdapterSource } from './adapter-source-suite.ts'

const home = createHomeFetch()
let hub: FakeHub
let source: AdapterSourceReader

beforeAll(async () => {
  hub = await startFakeHub()
  source = createHubSource({ endpoint: `${hub.url}/`, offline: false }, home.fetch)
})

afterAll(async () => {
  await home.close()
  await hub.close()
})

const resolve = (ref: AdapterRef, token?: string) =>
  source.resolve(ref, { token, signal: new AbortController().signal })
const noWait = async () => {}

testAdapterSource('hub', async () => ({
  source,
  put: async (name, files) => {
    hub.commit({ id: `org/${name}`, files })
    return { source: 'hub', id: `org/${name}` }
  },
  absent: { source: 'hub', id: 'org/absent' },
  token: undefined,
}))

describe('revisions', () => {
  it('resolves a branch to its commit, and a commit to itself', async () => {
    const first = hub.commit({ id: 'org/revised', files: variant('merge-a', 1) })
    const second = hub.commit({ id: 'org/revised', files: variant('merge-a', 2) })
    expect((await resolve({ source: 'hub', id: 'org/revised' })).ref.revision).toBe(second)
    const pinned = await resolve({ source: 'hub', id: 'org/revised', revision: first })
    expect(pinned.ref.revision).toBe(first)
    expect(source.isExact(pinned.ref)).toBe(true)
    expect(source.isExact({ source: 'hub', id: 'org/revised', revision: 'main' })).toBe(false)
  })

  it('refuses ids and revisions that would lead elsewhere on the server', async () => {
    for (const id of ['../api', 'org/..', 'org/name/more', 'a b/c', 'org/name?x=1']) {
      await expect(resolve({ source: 'hub', id })).rejects.toMatchObject({ code: 'field_invalid' })
    }
    await expect(resolve({ source: 'hub', id: 'org/name', revision: '../x' })).rejects.toMatchObject({
      code: 'field_invalid',
    })
  })
})

describe('the right to read', () => {
  it('takes tokens of any form, and answers alike for "private" and "does not exist"', async () => {
    hub.commit({ id: 'org/private', tokens: ['any form of token'], files: adapterFiles('merge-a') })
    expect((await resolve({ source: 'hub', id: 'org/private' }, 'any form of token')).files).toHaveLength(2)
    const errors = await Promise.all(
      [resolve({ source: 'hub', id: 'org/private' }), resolve({ source: 'hub', id: 'org/private' }, 'hf_wrong')].map(
        (it) => it.catch((error: Error) => error.message),
      ),
    )
    const absent = await resolve({ source: 'hub', id: 'org/abs' }, 'hf_wrong').catch((error: Error) => error.message)
    expect(errors).toEqual([absent, absent].map((text) => String(text).replace('org/abs', 'org/private')))
  })

  it('asks for the files of a gated repository, whose list anybody may see', async () => {
    hub.commit({ id: 'org/gated', gated: true, tokens: ['granted'], files: adapterFiles('merge-a') })
    await expect(resolve({ source: 'hub', id: 'org/gated' }, 'not granted')).rejects.toMatchObject({
      code: 'adapter_not_found',
    })
    expect((await resolve({ source: 'hub', id: 'org/gated' }, 'granted')).files).toHaveLength(2)
  })

  it('does not put the token into errors', async () => {
    const error = await resolve({ source: 'hub', id: 'org/none' }, 'secret-token').catch((thrown: Error) => thrown)
    expect(JSON.stringify([String(error), (error as Error).stack, (error as Error).cause])).not.toContain(
      'secret-token',
    )
  })
})

describe('transfers', () => {
  it('go on where they broke, without fetching again what has arrived', async () => {
    hub.commit({ id: 'org/breaks', files: adapterFiles('wide-r48') })
    const resolved = await resolve({ source: 'hub', id: 'org/breaks' })
    const directory = await temporaryDirectory()
    hub.transfers.length = 0
    hub.breakTransfers(3)
    await downloadAdapter(resolved, directory.path, { signal: new AbortController().signal, sleep: noWait })
    const expected = adapterFiles('wide-r48')['adapter_model.safetensors']!
    expect(await readFile(join(directory.path, 'adapter_model.safetensors'))).toEqual(Buffer.from(expected))
    const starts = hub.transfers
      .filter((line) => line.includes('safetensors'))
      .map((line) => Number(/ (\d+)-/.exec(line)![1]))
    expect(starts[0]).toBe(0)
    expect(starts.slice(1).every((start) => start > 0)).toBe(true)
    await directory.remove()
  })

  it('that break for good are continued by the next call', async () => {
    hub.commit({ id: 'org/continues', files: adapterFiles('merged-cat') })
    const resolved = await resolve({ source: 'hub', id: 'org/continues' })
    const directory = await temporaryDirectory()
    hub.failRequests(1000, 503)
    const options = { signal: new AbortController().signal, sleep: noWait }
    await expect(downloadAdapter(resolved, directory.path, options)).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    hub.failRequests(0, 503)
    await downloadAdapter(resolved, directory.path, options)
    hub.transfers.length = 0
    await downloadAdapter(resolved, directory.path, options)
    expect(hub.transfers).toEqual([])
    await directory.remove()
  })

  it('that arrive damaged are refused and fetched again by the next call', async () => {
    hub.commit({ id: 'org/damaged', files: adapterFiles('merge-c') })
    const resolved = await resolve({ source: 'hub', id: 'org/damaged' })
    const directory = await temporaryDirectory()
    hub.damageTransfers(2)
    hub.transfers.length = 0
    const options = { signal: new AbortController().signal, sleep: noWait }
    // The config is no LFS file: its git blob id is compared.
    await expect(downloadAdapter(resolved, directory.path, options)).rejects.toThrow(/damaged: gitBlobSha1/)
    // Both files were, so both are fetched again, each once.
    await downloadAdapter(resolved, directory.path, options)
    expect(hub.transfers).toHaveLength(4)
    hub.damageTransfers(1)
    const other = await temporaryDirectory()
    await expect(downloadAdapter(resolved, other.path, options)).rejects.toThrow(/damaged: (gitBlobSha1|sha256)/)
    hub.transfers.length = 0
    await downloadAdapter(resolved, other.path, options)
    expect(hub.transfers).toHaveLength(1)
    await directory.remove()
    await other.remove()
  })

  it('that break for good within a range are continued at the byte where they broke', async () => {
    hub.commit({ id: 'org/half', files: adapterFiles('wide-r48') })
    const resolved = await resolve({ source: 'hub', id: 'org/half' })
    const directory = await temporaryDirectory()
    const { signal } = new AbortController()
    hub.breakTransfers(2)
    // After the first break the hub is gone.
    const sleep = async () => hub.failRequests(1000, 503)
    await expect(downloadAdapter(resolved, directory.path, { signal, sleep })).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    hub.failRequests(0, 503)
    hub.transfers.length = 0
    const received: number[] = []
    await downloadAdapter(resolved, directory.path, {
      signal,
      sleep: noWait,
      onProgress: (bytes) => received.push(bytes),
    })
    const expected = adapterFiles('wide-r48')['adapter_model.safetensors']!
    expect(await readFile(join(directory.path, 'adapter_model.safetensors'))).toEqual(Buffer.from(expected))
    const starts = hub.transfers.map((line) => Number(/ (\d+)-/.exec(line)![1]))
    expect(starts.some((start) => start > 0)).toBe(true)
    expect(received.at(-1)).toBe(resolved.files.reduce((sum, file) => sum + file.bytes, 0))
    // A journal that outlived its file is not believed.
    await writeFile(join(directory.path, 'adapter_model.safetensors'), '')
    await downloadAdapter(resolved, directory.path, { signal })
    expect(await readFile(join(directory.path, 'adapter_model.safetensors'))).toEqual(Buffer.from(expected))
    await directory.remove()
  })

  it.skipIf(process.platform !== 'linux')(
    'to a full disk are the node’s failure, not the home’s, and not tried again',
    async () => {
      hub.commit({ id: 'org/full', files: adapterFiles('merge-a') })
      const resolved = await resolve({ source: 'hub', id: 'org/full' })
      const directory = await temporaryDirectory()
      await symlink('/dev/full', join(directory.path, 'adapter_model.safetensors'))
      hub.transfers.length = 0
      const options = { signal: new AbortController().signal, sleep: noWait }
      await expect(downloadAdapter(resolved, directory.path, options)).rejects.toMatchObject({
        code: 'adapter_capacity',
        message: expect.stringContaining('ENOSPC'),
      })
      expect(hub.transfers.filter((line) => line.includes('safetensors'))).toHaveLength(1)
      await directory.remove()
    },
  )

  it('of more bytes than were asked for write none beyond them', async () => {
    hub.commit({ id: 'org/more', files: adapterFiles('merge-a') })
    const resolved = await resolve({ source: 'hub', id: 'org/more' })
    const generous = resolved.files.map((file) => ({
      ...file,
      read: async function* () {
        yield new Uint8Array(file.bytes + 1)
      },
    }))
    const directory = await temporaryDirectory()
    const options = { signal: new AbortController().signal, sleep: noWait }
    await expect(downloadAdapter({ ...resolved, files: generous }, directory.path, options)).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    expect((await stat(join(directory.path, 'adapter_config.json'))).size).toBe(0)
    await directory.remove()
  })

  it('larger than a range are fetched in several at once', async () => {
    const files = adapterFiles('merge-a')
    const large = new Uint8Array(20 * 1024 * 1024).map((_, i) => i * 31)
    hub.commit({ id: 'org/large', files: { ...files, 'adapter_model.safetensors': large } })
    const resolved = await resolve({ source: 'hub', id: 'org/large' })
    const directory = await temporaryDirectory()
    hub.transfers.length = 0
    await downloadAdapter(resolved, directory.path, { signal: new AbortController().signal })
    expect(hub.transfers.filter((line) => line.includes('safetensors'))).toHaveLength(3)
    expect(Buffer.compare(await readFile(join(directory.path, 'adapter_model.safetensors')), large)).toBe(0)
    await directory.remove()
  })
})

describe('a hub that is not there', () => {
  it('is adapter_home_unreachable, as is a hub that fails', async () => {
    const nowhere = createHubSource({ endpoint: 'http://127.0.0.1:1', offline: false }, home.fetch)
    const access = { token: undefined, signal: new AbortController().signal }
    await expect(nowhere.resolve({ source: 'hub', id: 'org/x' }, access)).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    hub.failRequests(1, 500)
    await expect(resolve({ source: 'hub', id: 'org/whole' })).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    hub.failRequests(0, 500)
  })

  it('is not asked in offline mode', async () => {
    const offline = createHubSource({ endpoint: hub.url, offline: true }, home.fetch)
    hub.requests.length = 0
    const access = { token: undefined, signal: new AbortController().signal }
    await expect(offline.resolve({ source: 'hub', id: 'org/whole' }, access)).rejects.toThrow(/offline/)
    expect(hub.requests).toEqual([])
  })
})
