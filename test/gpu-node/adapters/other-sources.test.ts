import { mkdir, rename, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { AdapterSourceReader } from '../../../gpu-node/adapters/sources/adapter-source.ts'
import { createLocalSource } from '../../../gpu-node/adapters/sources/local-source.ts'
import { createPredibaseSource } from '../../../gpu-node/adapters/sources/predibase-source.ts'
import {
  createS3Home,
  createS3Source,
  parseS3Id,
  type S3Home,
  s3Address,
} from '../../../gpu-node/adapters/sources/s3-source.ts'
import { type FakePredibase, startFakePredibase } from '../../support/fake-predibase.ts'
import { adapterFiles, temporaryDirectory, variant, writeFiles } from '../../support/golden-fixtures.ts'
import { S3RVER_ENVIRONMENT, type S3Server, startS3Server } from '../../support/s3-server.ts'
import { testAdapterSource } from './adapter-source-suite.ts'

let s3: S3Server
let s3Home: S3Home
let s3Source: AdapterSourceReader
let predibase: FakePredibase
let local: { path: string; remove: () => Promise<void> }
let root: string
const access = (token?: string) => ({ token, signal: new AbortController().signal })

beforeAll(async () => {
  for (const [name, value] of Object.entries(S3RVER_ENVIRONMENT)) {
    vi.stubEnv(name, value)
  }
  s3 = await startS3Server()
  await s3.createBucket('adapters')
  await s3.createBucket('secret')
  s3Home = createS3Home({ endpointUrl: s3.endpoint })
  s3Source = createS3Source({ allowedBuckets: ['adapters'] }, s3Home)
  predibase = await startFakePredibase()
  local = await temporaryDirectory()
  root = join(local.path, 'root')
  await mkdir(root)
})

afterAll(async () => {
  vi.unstubAllEnvs()
  s3Home.close()
  await s3.close()
  await predibase.close()
  await local.remove()
})

async function putAll(bucket: string, prefix: string, files: Record<string, Uint8Array>): Promise<void> {
  for (const [name, bytes] of Object.entries(files)) {
    await s3.put(bucket, `${prefix}/${name}`, bytes)
  }
}

testAdapterSource('s3', async () => ({
  source: s3Source,
  put: async (name, files) => {
    await putAll('adapters', `team/${name}`, files)
    return { source: 's3', id: `adapters/team/${name}` }
  },
  absent: { source: 's3', id: 'adapters/team/absent' },
  token: undefined,
}))

testAdapterSource('local', async () => ({
  source: createLocalSource([root]),
  put: async (name, files) => {
    await writeFiles(join(root, name), files)
    return { source: 'local', id: name }
  },
  absent: { source: 'local', id: 'absent' },
  token: undefined,
}))

testAdapterSource('pbase', async () => ({
  source: createPredibaseSource({ endpoint: predibase.url, bucket: 'adapters', folder: 'pbase/' }, s3Home),
  put: async (name, files) => {
    await putAll('adapters', `pbase/runs/${name}`, files)
    predibase.versions.push({
      repo: name,
      version: 1,
      status: 'completed',
      adapterPath: `runs/${name}/`,
      tokens: ['pb_1'],
    })
    return { source: 'pbase', id: `${name}/1` }
  },
  absent: { source: 'pbase', id: 'absent/1' },
  token: 'pb_1',
}))

describe('s3', () => {
  it('takes the prefix exactly: adapters/1 is not adapters/10', async () => {
    await putAll('adapters', 'numbered/10', adapterFiles('merge-a'))
    await expect(s3Source.resolve({ source: 's3', id: 'adapters/numbered/1' }, access())).rejects.toMatchObject({
      code: 'adapter_not_found',
    })
    await putAll('adapters', 'numbered/1', adapterFiles('merge-b'))
    const found = await s3Source.resolve({ source: 's3', id: 'adapters/numbered/1/' }, access())
    expect(found.files[0]!.bytes).toBe(adapterFiles('merge-b')['adapter_config.json']!.length)
  })

  it('lets nobody name a bucket that the operator did not allow', async () => {
    await putAll('secret', 'a', adapterFiles('merge-a'))
    await expect(s3Source.resolve({ source: 's3', id: 'secret/a' }, access())).rejects.toMatchObject({
      code: 'scope_denied',
    })
    const none = createS3Source({ allowedBuckets: [] }, s3Home)
    await expect(none.resolve({ source: 's3', id: 'adapters/a' }, access())).rejects.toMatchObject({
      code: 'scope_denied',
    })
    const all = createS3Source({ allowedBuckets: '*' }, s3Home)
    expect((await all.resolve({ source: 's3', id: 'secret/a' }, access())).files).toHaveLength(2)
  })

  it('has the bucket in the content key', async () => {
    await putAll('adapters', 'same', adapterFiles('merge-a'))
    await putAll('secret', 'same', adapterFiles('merge-a'))
    const all = createS3Source({ allowedBuckets: '*' }, s3Home)
    const keys = await Promise.all(
      ['adapters/same', 'secret/same'].map(
        async (id) => (await all.resolve({ source: 's3', id }, access())).contentKey,
      ),
    )
    expect(keys[0]).not.toBe(keys[1])
  })

  it('refuses ids that name no bucket and prefix', () => {
    for (const id of ['bucket', 'bucket/', '/x', 'UPPER/x', 'a/x', '../x', 'bucket//']) {
      expect(() => parseS3Id(id)).toThrow(/bucket\/prefix/)
    }
    expect(parseS3Id('loras/foo/bar')).toEqual({ bucket: 'loras', prefix: 'foo/bar' })
  })

  it('says that a store is not there', async () => {
    const nowhere = createS3Home({ endpointUrl: 'http://127.0.0.1:1' })
    const source = createS3Source({ allowedBuckets: '*' }, nowhere)
    await expect(source.resolve({ source: 's3', id: 'adapters/a' }, access())).rejects.toMatchObject({
      code: 'adapter_home_unreachable',
    })
    nowhere.close()
  })

  it('reads R2 at the account’s own address', () => {
    expect(s3Address({ r2AccountId: 'abc123', endpointUrl: 'http://elsewhere' })).toEqual({
      endpoint: 'https://abc123.r2.cloudflarestorage.com',
      region: 'auto',
    })
    expect(s3Address({})).toEqual({ endpoint: undefined, region: 'us-east-1' })
    expect(s3Address({ endpointUrl: 'http://minio:9000', region: 'eu-1' })).toEqual({
      endpoint: 'http://minio:9000',
      region: 'eu-1',
    })
  })
})

describe('local', () => {
  const source = () => createLocalSource([root])

  it('takes absolute and relative names below a root', async () => {
    await writeFiles(join(root, 'deep/one'), adapterFiles('merge-a'))
    for (const id of ['deep/one', join(root, 'deep/one'), 'deep/../deep/one/']) {
      const found = await source().resolve({ source: 'local', id }, access())
      expect(found.directory).toBe(join(root, 'deep/one'))
    }
  })

  it('never leaves its roots, by .. or by symbolic links of directories or files', async () => {
    const outside = await writeFiles(join(local.path, 'outside'), adapterFiles('merge-a'))
    await symlink(outside, join(root, 'linked'))
    await mkdir(join(root, 'linked-files'))
    for (const name of Object.keys(adapterFiles('merge-a'))) {
      await symlink(join(outside, name), join(root, 'linked-files', name))
    }
    for (const id of ['../outside', outside, 'linked', 'linked-files', '.', '', '/', '/etc', '..', 'a\0b']) {
      await expect(source().resolve({ source: 'local', id }, access()), id).rejects.toMatchObject({
        code: 'adapter_not_found',
      })
    }
  })

  it('follows symbolic links that stay inside, and has nothing without a root', async () => {
    await writeFiles(join(root, 'target'), adapterFiles('merge-a'))
    await symlink(join(root, 'target'), join(root, 'alias'))
    expect((await source().resolve({ source: 'local', id: 'alias' }, access())).directory).toBe(join(root, 'target'))
    await expect(createLocalSource([]).resolve({ source: 'local', id: 'target' }, access())).rejects.toMatchObject({
      code: 'adapter_not_found',
    })
  })

  it('sees a file that was replaced by one of the same size', async () => {
    const directory = await writeFiles(join(root, 'replaced'), adapterFiles('merge-a'))
    const before = await source().resolve({ source: 'local', id: 'replaced' }, access())
    await writeFiles(join(root, 'new'), adapterFiles('merge-b'))
    await rename(join(root, 'new/adapter_model.safetensors'), join(directory, 'adapter_model.safetensors'))
    const after = await source().resolve({ source: 'local', id: 'replaced' }, access())
    expect(after.contentKey).not.toBe(before.contentKey)
  })
})

describe('pbase', () => {
  const source = () => createPredibaseSource({ endpoint: predibase.url, bucket: 'adapters', folder: 'pbase' }, s3Home)

  it('takes the latest version when none is named', async () => {
    await putAll('adapters', 'pbase/uuid-1/run-9/artifacts/model/model_weights', variant('merge-a', 9))
    predibase.legacy.set('latest', { uuid: 'uuid-1', bestRunID: 'run-9', versionNumber: 4, tokens: ['pb_1'] })
    const found = await source().resolve({ source: 'pbase', id: 'latest' }, access('pb_1'))
    expect(found.ref.id).toBe('latest/4')
    expect(found.files).toHaveLength(2)
    // A version that only the older endpoint knows.
    expect((await source().resolve({ source: 'pbase', id: 'latest/4' }, access('pb_1'))).ref.id).toBe('latest/4')
  })

  it('tells the caller that a version is not ready', async () => {
    for (const status of ['pending', 'queued', 'stopping']) {
      predibase.versions.push({ repo: status, version: 1, status, tokens: ['pb_1'] })
      await expect(source().resolve({ source: 'pbase', id: `${status}/1` }, access('pb_1'))).rejects.toMatchObject({
        code: 'adapter_not_ready',
        message: expect.stringContaining(status),
      })
    }
    predibase.versions.push({ repo: 'training', version: 1, status: 'training', tokens: ['pb_1'] })
    await expect(source().resolve({ source: 'pbase', id: 'training/1' }, access('pb_1'))).rejects.toMatchObject({
      code: 'adapter_not_ready',
    })
  })

  it('needs a token, and the right one', async () => {
    const ref = { source: 'pbase', id: 'latest/4' } as const
    await expect(source().resolve(ref, access())).rejects.toMatchObject({ code: 'field_invalid', param: 'api_token' })
    await expect(source().resolve(ref, access('pb_other'))).rejects.toMatchObject({ code: 'adapter_not_found' })
  })

  it('refuses ids that are no repo and version', async () => {
    for (const id of ['a/b/c', '/1', 'a/', '..', '../x']) {
      await expect(source().resolve({ source: 'pbase', id }, access('pb_1')), id).rejects.toMatchObject({
        code: 'field_invalid',
      })
    }
  })
})
