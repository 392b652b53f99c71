import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type FakeHub, startFakeHub } from '../support/fake-hub.ts'
import { type FakePredibase, startFakePredibase } from '../support/fake-predibase.ts'
import { type RunningStack, startStack } from '../support/running-stack.ts'
import { S3RVER_ENVIRONMENT, type S3Server, startS3Server } from '../support/s3-server.ts'

/** Homes on loopback, named to `npm start` by its environment alone. */
let hub: FakeHub
let predibase: FakePredibase
let s3: S3Server
let stack: RunningStack

const adapters = join(import.meta.dirname, '../../models/demo/adapters')
const MESSAGE = 'three red lamps for Berlin, please'

async function filesOf(adapter: string): Promise<Record<string, Uint8Array>> {
  const names = (await readdir(join(adapters, adapter))).filter((name) => name.startsWith('adapter_'))
  const files = names.map(
    async (name) => [name, new Uint8Array(await readFile(join(adapters, adapter, name)))] as const,
  )
  return Object.fromEntries(await Promise.all(files))
}

beforeAll(async () => {
  hub = await startFakeHub()
  predibase = await startFakePredibase()
  s3 = await startS3Server()
  await s3.createBucket('adapters')
  await s3.createBucket('predibase')
  for (const [name, body] of Object.entries(await filesOf('orders-sql'))) {
    await s3.put('adapters', `team/sql/${name}`, body)
    await s3.put('predibase', `uuid/run/artifacts/model/model_weights/${name}`, body)
  }
  predibase.legacy.set('sql', { uuid: 'uuid', bestRunID: 'run', versionNumber: 3, tokens: ['pbase'] })
  predibase.versions.push({ repo: 'sql', version: 4, status: 'pending', tokens: ['pbase'] })
  stack = await startStack(['--nodes', '1', '--threads', '1', '--dtype', 'f32'], {
    ...S3RVER_ENVIRONMENT,
    HF_ENDPOINT: hub.url,
    S3_ENDPOINT_URL: s3.endpoint,
    PREDIBASE_GATEWAY_ENDPOINT: predibase.url,
    PREDIBASE_MODEL_BUCKET: 'predibase',
  })
})

afterAll(async () => {
  await stack?.stop()
  await Promise.all([hub?.close(), predibase?.close(), s3?.close()])
})

interface Answer {
  status: number
  text: string
  code: string
  message: string
  header: (name: string) => string | null
}

async function generate(parameters: object, headers: Record<string, string> = {}): Promise<Answer> {
  const response = await stack.post(
    '/generate',
    { inputs: MESSAGE, parameters: { max_new_tokens: 24, ...parameters } },
    headers,
  )
  const reply = (await response.json()) as { generated_text?: string; code?: string; error?: string }
  return {
    status: response.status,
    text: reply.generated_text ?? '',
    code: response.headers.get('x-error-code') ?? reply.code ?? '',
    message: reply.error ?? '',
    header: (name) => response.headers.get(name),
  }
}

const local = (id: string) => generate({ adapter_id: id, adapter_source: 'local' })

describe('one adapter', () => {
  test('a hub named by HF_ENDPOINT: branch, commit, and id@commit of an older one', async () => {
    const older = hub.commit({ id: 'desk/orders', files: await filesOf('orders-json') })
    const newer = hub.commit({ id: 'desk/orders', files: await filesOf('orders-sql') })
    const latest = await generate({ adapter_id: 'desk/orders' })
    expect(latest).toMatchObject({ status: 200, text: (await local('orders-sql')).text })
    expect(await generate({ adapter_id: `desk/orders@${newer}` })).toMatchObject({ text: latest.text })
    expect(latest.header('x-adapter-cache')).toBe('remote')
    const exact = await generate({ adapter_id: `desk/orders@${older}` })
    expect(exact).toMatchObject({ status: 200, text: (await local('orders-json')).text })
    expect(exact.header('x-adapter-digest')).not.toBe(latest.header('x-adapter-digest'))
    expect(await generate({ adapter_id: 'desk/orders@no-such-branch' })).toMatchObject({ status: 404 })
  })

  test('a private repository: any token string, by field or header; the same refusal for everybody else', async () => {
    hub.commit({
      id: 'desk/private',
      files: await filesOf('pirate'),
      tokens: ['any string at all'.replaceAll(' ', '-')],
    })
    const token = 'any-string-at-all'
    expect(await generate({ adapter_id: 'desk/private' })).toMatchObject({ status: 404 })
    expect(await generate({ adapter_id: 'desk/private', api_token: token })).toMatchObject({ status: 200 })
    expect(await generate({ adapter_id: 'desk/private' }, { 'x-adapter-token': token })).toMatchObject({ status: 200 })
    const refused = await generate({ adapter_id: 'desk/private', api_token: 'wrong' })
    const absent = await generate({ adapter_id: 'desk/nothing', api_token: 'wrong' })
    expect(refused.status).toBe(404)
    expect(refused.message.replace('private', 'nothing')).toBe(absent.message)
    // The right is looked at for every request, though the adapter is in the engine.
    hub.revoke('desk/private', token)
    expect(await generate({ adapter_id: 'desk/private', api_token: token })).toMatchObject({ status: 404 })
  })

  test('a gated repository, whose list anybody sees, is for those let in', async () => {
    hub.commit({ id: 'desk/gated', files: await filesOf('pirate'), tokens: ['let-in'], gated: true })
    expect(await generate({ adapter_id: 'desk/gated' })).toMatchObject({ status: 404 })
    expect(await generate({ adapter_id: 'desk/gated', api_token: 'let-in' })).toMatchObject({ status: 200 })
  })

  test('a transfer that breaks goes on; one that is damaged never becomes an answer', async () => {
    hub.commit({ id: 'desk/breaks', files: await filesOf('triage') })
    hub.breakTransfers(2)
    expect(await generate({ adapter_id: 'desk/breaks' })).toMatchObject({
      status: 200,
      text: (await local('triage')).text,
    })
    hub.commit({ id: 'desk/damaged', files: await filesOf('redact') })
    hub.damageTransfers(2)
    // The edge's hint to the node may have met the damage before the request did.
    const redact = { status: 200, text: (await local('redact')).text }
    const first = await generate({ adapter_id: 'desk/damaged' })
    expect(first).toMatchObject(first.status === 503 ? { code: 'adapter_home_unreachable' } : redact)
    expect(await generate({ adapter_id: 'desk/damaged' })).toMatchObject(redact)
  })

  test('Predibase: the latest version when none is named, a version in training, and no token', async () => {
    const latest = await generate({ adapter_id: 'sql', adapter_source: 'pbase', api_token: 'pbase' })
    expect(latest).toMatchObject({ status: 200, text: (await local('orders-sql')).text })
    const training = await generate({ adapter_id: 'sql/4', adapter_source: 'pbase', api_token: 'pbase' })
    expect(training.status).toBe(409)
    expect(training.message).toContain('pending')
    expect(await generate({ adapter_id: 'sql', adapter_source: 'pbase' })).toMatchObject({ status: 404 })
  })

  test('S3 in both spellings; a changed object is another adapter', async () => {
    const first = await generate({ adapter_id: 's3://adapters/team/sql' })
    expect(first).toMatchObject({ status: 200, text: (await local('orders-sql')).text })
    expect(await generate({ adapter_id: 'adapters/team/sql', adapter_source: 's3' })).toMatchObject({ status: 200 })
    expect(await generate({ adapter_id: 's3://adapters/team/s' })).toMatchObject({ status: 404 })
    for (const [name, body] of Object.entries(await filesOf('orders-json'))) {
      await s3.put('adapters', `team/sql/${name}`, body)
    }
    await expect
      .poll(async () => (await generate({ adapter_id: 's3://adapters/team/sql' })).text, {
        timeout: 30_000,
        interval: 500,
      })
      .toBe((await local('orders-json')).text)
  })

  test('a tenant made later may name no bucket until the operator says so', async () => {
    const made = (await (await stack.admin('POST', '/tenants', { name: 'later' })).json()) as {
      token: { token: string }
    }
    const body = { inputs: MESSAGE, parameters: { max_new_tokens: 1, adapter_id: 's3://adapters/team/sql' } }
    const ask = () => stack.post('/generate', body, { authorization: `Bearer ${made.token.token}` })
    expect((await ask()).status).toBe(403)
    await stack.admin('PATCH', '/tenants/later', { scopes: { buckets: ['adapters'] } })
    await expect.poll(async () => (await ask()).status, { timeout: 30_000, interval: 500 }).toBe(200)
  })
})

describe('merges', () => {
  const merged = (fields: object, more: object = {}) => generate({ merged_adapters: fields, ...more })

  test('parts from several homes, each with its own source and token', async () => {
    hub.commit({ id: 'desk/part', files: await filesOf('orders-sql'), tokens: ['part'] })
    const parts = {
      ids: ['desk/part', 'orders-sql', 'sql'],
      weights: [0.5, 0.25, 0.25],
      sources: [null, 'local', 'pbase'],
      merge_strategy: 'cat',
    }
    const whole = await merged({ ...parts, api_tokens: ['part', null, 'pbase'] })
    expect(whole).toMatchObject({ status: 200, text: (await local('orders-sql')).text })
    expect(await merged({ ...parts, api_tokens: [null, null, 'pbase'] })).toMatchObject({ status: 404 })
    expect(await merged({ ...parts, api_tokens: ['part', null, 'wrong'] })).toMatchObject({ status: 404 })
  })

  test('cat takes any ranks; the others say which differ; seeds are DARE’s', async () => {
    const pair = { ids: ['orders-sql', 'redact'], weights: [1, 0], sources: ['local', 'local'] }
    expect(await merged({ ...pair, merge_strategy: 'cat' })).toMatchObject({
      status: 200,
      text: (await local('orders-sql')).text,
    })
    const refused = await merged({ ...pair, merge_strategy: 'linear' })
    expect(refused.status).toBe(422)
    expect(refused.message).toMatch(/equal ranks.*rank 16.*8/)
    const alike = { ids: ['orders-sql', 'orders-json'], weights: [1, 1], sources: ['local', 'local'] }
    const dare = (seed: number) => merged({ ...alike, merge_strategy: 'dare_linear', density: 0.5, seed })
    const [one, again, other] = [await dare(1), await dare(1), await dare(2)]
    expect(again.header('x-adapter-digest')).toBe(one.header('x-adapter-digest'))
    expect(other.header('x-adapter-digest')).not.toBe(one.header('x-adapter-digest'))
  })

  test.each<[string, object, RegExp, object?]>([
    ['density missing', { merge_strategy: 'ties' }, /density/],
    ['density 0', { merge_strategy: 'dare_ties', density: 0 }, /density/],
    ['density above 1', { merge_strategy: 'ties', density: 1.5 }, /density/],
    ['an unknown strategy', { merge_strategy: 'average' }, /merge_strategy/],
    ['an unknown sign method', { merge_strategy: 'ties', density: 0.5, majority_sign_method: 'most' }, /sign/],
    ['a weight too few', { weights: [1] }, /number of adapter weights/],
    ['a source too many', { sources: ['local', 'local', 'local'] }, /one entry for each/],
    ['a misspelt field', { merge_stratgy: 'ties' }, /merge_strategy/],
    ['a negative seed', { merge_strategy: 'dare_linear', density: 0.5, seed: -1 }, /seed/],
    ['an id beside it', {}, /adapter_id|both/i, { adapter_id: 'triage' }],
  ])('%s is a 422 that says so', async (_, fields, message, more = {}) => {
    const pair = { ids: ['orders-sql', 'orders-json'], weights: [1, 1], sources: ['local', 'local'] }
    const refused = await merged({ ...pair, ...fields }, more)
    expect(refused.status).toBe(422)
    expect(refused.message).toMatch(message)
  })
})

describe('the operator’s view', () => {
  interface Listing {
    ref: string
    digest: string
    tier: string
    leases: number
    pinned: boolean
    rank: number
    bytes: number
    lastUsed: number
  }
  const call = async (method: string, path: string, body?: object) => {
    const response = await stack.admin(method, path, body)
    return (await response.json()) as { nodes: { status: number; body: { adapters: Listing[] } & Listing }[] }
  }
  const listed = async (ref: string): Promise<Listing | undefined> =>
    (await call('GET', '/adapters')).nodes[0]!.body.adapters.find((adapter) => adapter.ref === ref)

  test('lists what nodes hold; prefetches, pins, unpins and unloads', async () => {
    const ref = 'local:pirate'
    const reply = await call('POST', '/adapters/prefetch', { adapter: ref })
    expect(reply.nodes[0]).toMatchObject({ status: 200 })
    const before = Date.now()
    expect(await local('pirate')).toMatchObject({ status: 200 })
    expect(await listed(ref)).toMatchObject({
      digest: expect.stringMatching(/^[0-9a-f]{64}$/),
      tier: 'engine',
      leases: 0,
      pinned: false,
      rank: 16,
      bytes: expect.any(Number),
    })
    expect((await listed(ref))!.lastUsed).toBeGreaterThanOrEqual(before - 1_000)
    await call('POST', '/adapters/pin', { adapter: ref })
    expect(await listed(ref)).toMatchObject({ pinned: true })
    expect((await call('POST', '/adapters/unload', { adapter: ref })).nodes[0]).toMatchObject({ status: 409 })
    await call('POST', '/adapters/unpin', { adapter: ref })
    expect((await call('POST', '/adapters/unload', { adapter: ref })).nodes[0]).toMatchObject({ status: 200 })
    expect(await listed(ref)).toBeUndefined()
  })
})
