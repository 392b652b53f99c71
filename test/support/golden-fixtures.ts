/** Paths of the golden cases that the repository carries, and adapter directories made from them. */

import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../fixtures/goldens/', import.meta.url))

export const LLAMA_BASE = join(ROOT, 'llama/base')
export const LLAMA_ADAPTERS = join(ROOT, 'llama/adapters')

/** An adapter's files by name. */
export function adapterFiles(adapter: string, weights = 'adapter_model.safetensors'): Record<string, Uint8Array> {
  const directory = join(LLAMA_ADAPTERS, adapter)
  return {
    'adapter_config.json': readFileSync(join(directory, 'adapter_config.json')),
    [weights]: readFileSync(join(directory, weights)),
  }
}

/** As many different adapters as wanted from one: each has another `lora_alpha`, so another content. */
export function variant(adapter: string, number: number): Record<string, Uint8Array> {
  const files = adapterFiles(adapter)
  const config = JSON.parse(new TextDecoder().decode(files['adapter_config.json'])) as Record<string, unknown>
  return { ...files, 'adapter_config.json': Buffer.from(JSON.stringify({ ...config, lora_alpha: 1 + number / 8 })) }
}

export async function writeFiles(directory: string, files: Record<string, Uint8Array>): Promise<string> {
  await mkdir(directory, { recursive: true })
  for (const [name, bytes] of Object.entries(files)) {
    await writeFile(join(directory, name), bytes)
  }
  return directory
}

export async function temporaryDirectory(): Promise<{ path: string; remove: () => Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), 'ringlet-test-'))
  return { path, remove: () => rm(path, { recursive: true, force: true }) }
}
