// LiteLLM's proxy in front of the stub node, one worker; a peer of the edge in `edge-latency.ts`.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export interface RunningLitellm {
  url: string
  headers: Record<string, string>
  stop: () => Promise<void>
}

/** It refuses a short or well-known key. */
const MASTER_KEY = `sk-bench-${crypto.randomUUID()}`
const START_LIMIT_MS = 120_000

/** `venv`: a virtual environment made by `litellm.sh`. */
export async function startLitellm(venv: string, stubUrl: string): Promise<RunningLitellm> {
  const folder = await mkdtemp(join(tmpdir(), 'litellm-'))
  const config = join(folder, 'config.yaml')
  await writeFile(
    config,
    `model_list:
  - model_name: demo
    litellm_params:
      model: openai/stub
      api_base: ${stubUrl}/v1
      api_key: none
general_settings:
  master_key: ${MASTER_KEY}
litellm_settings:
  telemetry: false
`,
  )
  const port = await freePort()
  const child = spawn(
    join(venv, 'bin', 'litellm'),
    ['--config', config, '--host', '127.0.0.1', '--port', String(port), '--num_workers', '1'],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, LITELLM_LOG: 'ERROR' } },
  )
  let errors = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-4_000)
  })
  const url = `http://127.0.0.1:${port}`
  const stop = async () => {
    if (child.exitCode === null) {
      child.kill()
      await once(child, 'exit')
    }
    await rm(folder, { recursive: true })
  }
  const deadline = performance.now() + START_LIMIT_MS
  while (!(await answers(`${url}/health/liveliness`))) {
    if (child.exitCode !== null || performance.now() > deadline) {
      await stop()
      throw new Error(`LiteLLM did not start: ${errors}`)
    }
    await sleep(500)
  }
  return { url, headers: { authorization: `Bearer ${MASTER_KEY}` }, stop }
}

async function answers(url: string): Promise<boolean> {
  try {
    return (await fetch(url)).ok
  } catch {
    // Not listening yet.
    return false
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  return typeof address === 'object' && address !== null ? address.port : 0
}
