/**
 * Runs the Python clients against the whole stack, with adapters at every kind of home: local, a hub, Predibase, S3.
 * Prints their tables of pass and fail.
 *
 *   python3 -m venv venv && venv/bin/pip install -r bench/clients/requirements.txt
 *   npx tsx bench/clients/run.ts venv/bin/python
 */

import { spawn } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { startFakeHub } from '../../test/support/fake-hub.ts'
import { startFakePredibase } from '../../test/support/fake-predibase.ts'
import { startStack } from '../../test/support/running-stack.ts'
import { S3RVER_ENVIRONMENT, startS3Server } from '../../test/support/s3-server.ts'

const python = process.argv[2] ?? 'python3'
const adapter = 'models/demo/adapters/orders-json'
const files = Object.fromEntries(
  await Promise.all(
    (await readdir(adapter)).map(async (name) => [name, new Uint8Array(await readFile(join(adapter, name)))] as const),
  ),
)

const hub = await startFakeHub()
hub.commit({ id: 'desk/orders', files, tokens: ['hub-token'] })
const s3 = await startS3Server()
await s3.createBucket('adapters')
await s3.createBucket('predibase')
for (const [name, body] of Object.entries(files)) {
  await s3.put('adapters', `orders/${name}`, body)
  await s3.put('predibase', `tuned/orders/${name}`, body)
}
const predibase = await startFakePredibase()
predibase.versions.push({
  repo: 'orders',
  version: 2,
  status: 'completed',
  adapterPath: 'tuned/orders',
  tokens: ['pbase-token'],
})

const stack = await startStack(['--nodes', '1'], {
  ...S3RVER_ENVIRONMENT,
  HF_ENDPOINT: hub.url,
  S3_ENDPOINT_URL: s3.endpoint,
  PREDIBASE_GATEWAY_ENDPOINT: predibase.url,
  PREDIBASE_MODEL_BUCKET: 'predibase',
})
const folder = await mkdtemp(join(tmpdir(), 'ringlet-clients-'))
const sources = join(folder, 'sources.json')
await writeFile(
  sources,
  JSON.stringify([
    { source: 'hub', id: 'desk/orders', token: 'hub-token' },
    { source: 's3', id: 's3://adapters/orders' },
    { source: 'pbase', id: 'orders/2', token: 'pbase-token' },
  ]),
)
const { edgeUrl, tenantToken } = stack.dev
const codes = [
  await run('lorax_client_check.py', [edgeUrl, tenantToken, sources]),
  await run('openai_check.py', [edgeUrl, tenantToken]),
]
await stack.stop()
await Promise.all([hub.close(), s3.close(), predibase.close(), rm(folder, { recursive: true })])
process.exitCode = codes.every((code) => code === 0) ? 0 : 1

function run(script: string, args: string[]): Promise<number | null> {
  const child = spawn(resolve(python), [join('bench/clients', script), ...args], { stdio: 'inherit' })
  return new Promise((ended) => child.once('exit', ended))
}
