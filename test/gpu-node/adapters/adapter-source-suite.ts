/** What every source must do, whatever its protocol: one suite, run by each source's test. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import type { AdapterSourceReader, ResolvedAdapter } from '../../../gpu-node/adapters/sources/adapter-source.ts'
import { downloadAdapter } from '../../../gpu-node/adapters/sources/download.ts'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { adapterFiles, temporaryDirectory, variant } from '../../support/golden-fixtures.ts'

export interface SourceHome {
  source: AdapterSourceReader
  /** Puts these files there under a name (again), and says how a caller names them. */
  put(name: string, files: Record<string, Uint8Array>): Promise<AdapterRef>
  /** A well-formed ref under which there is nothing. */
  absent: AdapterRef
  /** The token of a caller who may read everything; sources without tokens have none. */
  token: string | undefined
}

const weights = 'adapter_model.safetensors'

export function testAdapterSource(name: string, open: () => Promise<SourceHome>): void {
  const resolve = (home: SourceHome, ref: AdapterRef) =>
    home.source.resolve(ref, { token: home.token, signal: new AbortController().signal })

  it(`${name}: gives the bytes that its home holds, whole and in ranges`, async () => {
    const home = await open()
    const files = adapterFiles('merge-a')
    const resolved = await resolve(home, await home.put('whole', files))
    expect(resolved.files.map((file) => file.name)).toEqual(['adapter_config.json', weights])
    for (const file of resolved.files) {
      const expected = Buffer.from(files[file.name]!)
      expect(file.bytes).toBe(expected.length)
      expect(await readAll(resolved, file.name, 0, expected.length)).toEqual(expected)
      expect(await readAll(resolved, file.name, 100, 711)).toEqual(expected.subarray(100, 711))
      expect(await readAll(resolved, file.name, 5, 5)).toHaveLength(0)
    }
  })

  it(`${name}: downloads into a directory`, async () => {
    const home = await open()
    const directory = await temporaryDirectory()
    const files = adapterFiles('merge-b')
    const resolved = await resolve(home, await home.put('download', files))
    const progress: number[] = []
    await downloadAdapter(resolved, directory.path, {
      signal: new AbortController().signal,
      onProgress: (received) => progress.push(received),
    })
    const total = Object.values(files).reduce((sum, bytes) => sum + bytes.length, 0)
    expect(await readFile(join(directory.path, weights))).toEqual(Buffer.from(files[weights]!))
    expect(progress.at(-1)).toBe(total)
    await directory.remove()
  })

  it(`${name}: keeps the content key while nothing changes, and changes it with the content`, async () => {
    const home = await open()
    const ref = await home.put('changing', variant('merge-a', 1))
    const first = await resolve(home, ref)
    expect((await resolve(home, ref)).contentKey).toBe(first.contentKey)
    const changed = await home.put('changing', variant('merge-a', 2))
    expect((await resolve(home, changed)).contentKey).not.toBe(first.contentKey)
    const other = await home.put('changing-2', variant('merge-a', 2))
    expect((await resolve(home, other)).contentKey).not.toBe((await resolve(home, changed)).contentKey)
  })

  it(`${name}: takes safetensors when there is a pickle too, and the pickle when it is alone`, async () => {
    const home = await open()
    const pickle = adapterFiles('all-r4-bin', 'adapter_model.bin')
    const both = await resolve(home, await home.put('both', { ...adapterFiles('all-r4'), ...pickle }))
    expect(both.files.map((file) => file.name)).toEqual(['adapter_config.json', weights])
    const alone = await resolve(home, await home.put('alone', pickle))
    expect(alone.files.map((file) => file.name)).toEqual(['adapter_config.json', 'adapter_model.bin'])
  })

  it(`${name}: says adapter_not_found where there is nothing`, async () => {
    const home = await open()
    await expect(resolve(home, home.absent)).rejects.toMatchObject({ code: 'adapter_not_found' })
  })

  it(`${name}: refuses a place without a config or without weights`, async () => {
    const home = await open()
    const { 'adapter_config.json': config, ...onlyWeights } = adapterFiles('merge-a')
    const noConfig = await home.put('no-config', onlyWeights)
    await expect(resolve(home, noConfig)).rejects.toMatchObject({ code: 'adapter_refused' })
    const noWeights = await home.put('no-weights', { 'adapter_config.json': config! })
    await expect(resolve(home, noWeights)).rejects.toMatchObject({ code: 'adapter_refused' })
  })

  it(`${name}: stops when the caller leaves`, async () => {
    const home = await open()
    const ref = await home.put('left', adapterFiles('merge-a'))
    const resolved = await resolve(home, ref)
    const reason = new Error('the caller left')
    const directory = await temporaryDirectory()
    const left = AbortSignal.abort(reason)
    await expect(downloadAdapter(resolved, directory.path, { signal: left })).rejects.toBe(reason)
    await directory.remove()
  })
}

async function readAll(resolved: ResolvedAdapter, name: string, start: number, end: number): Promise<Buffer> {
  const file = resolved.files.find((candidate) => candidate.name === name)!
  const chunks: Uint8Array[] = []
  for await (const chunk of file.read(start, end, new AbortController().signal)) {
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}
