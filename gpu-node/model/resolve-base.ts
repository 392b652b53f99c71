/** `--model`: a checkpoint directory, or an id at the hub (`org/name`, `org/name@revision`) that is fetched to the state directory. */

import { mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import type { AdapterRef } from '../../shared/adapter-ref.ts'
import { RingletError } from '../../shared/errors.ts'
import { downloadAdapter } from '../adapters/sources/download.ts'
import type { Fetch } from '../adapters/sources/http-home.ts'
import {
  checkRef,
  type HubEntry,
  listRepository,
  resolveFiles,
  toRefusal,
  withToken,
} from '../adapters/sources/hub-source.ts'
import { lockFile } from './lock-file.ts'
import { ModelError } from './model-error.ts'

export interface BaseHub {
  /** e.g. `https://huggingface.co`. */
  endpoint: string
  /** Any string. */
  token: string | undefined
  /** Never ask the hub: only what was fetched before. */
  offline: boolean
  /** Where fetched bases are kept, one folder a commit. */
  folder: string
  fetch: Fetch
  signal: AbortSignal
  warn: (text: string) => void
  onProgress?: (receivedBytes: number, totalBytes: number) => void
  /** Waits between attempts at a broken transfer; tests pass one that does not. */
  sleep?: (ms: number, signal: AbortSignal) => Promise<void>
}

/** What a checkpoint needs beside its weights; the first is required. */
const SMALL_FILES = [
  ...['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json'],
  ...['special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json'],
]
const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'
const SHARD = /^model-\d+-of-\d+\.safetensors$/

/** The checkpoint's directory, with its files whole. A directory of that name wins over a hub id. */
export async function resolveBase(model: string, hub: BaseHub): Promise<string> {
  if (await isDirectory(model)) {
    return resolve(model)
  }
  if (/^[./~]/.test(model) || !model.includes('/')) {
    throw new ModelError(`the model '${model}' is no directory here, and no hub id (organisation/name)`)
  }
  const ref = toRef(model)
  const place = join(hub.folder, ref.id.replaceAll('/', '--'))
  const known = await knownCommit(place, ref)
  if (known !== undefined && (hub.offline || known === ref.revision)) {
    return join(place, known)
  }
  if (hub.offline) {
    throw new ModelError(`the model ${model} was not fetched before, and the node is in offline mode`)
  }
  try {
    return await fetchBase(ref, place, hub)
  } catch (error) {
    if (known !== undefined && error instanceof RingletError && error.code === 'adapter_home_unreachable') {
      hub.warn(`the hub can't be reached; serving ${ref.id} at ${known}, as fetched before`)
      return join(place, known)
    }
    throw toModelError(model, error)
  }
}

function toRef(model: string): AdapterRef {
  const at = model.lastIndexOf('@')
  const ref: AdapterRef =
    at > 0 ? { source: 'hub', id: model.slice(0, at), revision: model.slice(at + 1) } : { source: 'hub', id: model }
  try {
    checkRef(ref)
  } catch (error) {
    throw toModelError(model, error)
  }
  return ref
}

async function fetchBase(ref: AdapterRef, place: string, hub: BaseHub): Promise<string> {
  const { token, signal } = hub
  const endpoint = hub.endpoint.replace(/\/+$/, '')
  const fetch = withToken(hub.fetch, endpoint, { token, signal })
  const { exact, entries } = await listRepository(ref, endpoint, fetch).catch(async (error: unknown) => {
    throw await toRefusal(ref, { token, signal }, error)
  })
  const commit = exact.revision!
  const directory = join(place, commit)
  const files = resolveFiles(exact, chooseFiles(ref, entries), endpoint, fetch)
  // Nodes on one machine may share the state directory and start together.
  const unlock = await lockFile(`${directory}.lock`, hub)
  try {
    if (!(await isDirectory(directory))) {
      const partial = `${directory}.partial`
      await downloadAdapter(files, partial, hub)
      await rm(join(partial, 'download.json'), { force: true })
      await rename(partial, directory)
    }
    await rememberCommit(place, ref, commit)
    return directory
  } finally {
    await unlock()
  }
}

/** Config, tokenizer, and the weights as safetensors: one file, or the shards of an index. */
function chooseFiles(ref: AdapterRef, entries: readonly HubEntry[]): HubEntry[] {
  const named = (name: string) => entries.find((entry) => entry.name === name)
  const small = SMALL_FILES.map(named).filter((entry) => entry !== undefined)
  if (named('config.json') === undefined) {
    throw new ModelError(`the repository ${ref.id} has no config.json`)
  }
  const single = named(SINGLE)
  const index = named(INDEX)
  if (single !== undefined) {
    return [...small, single]
  }
  const shards = entries.filter((entry) => SHARD.test(entry.name))
  if (index === undefined || shards.length === 0) {
    throw new ModelError(`the repository ${ref.id} has no ${SINGLE}, and no ${INDEX} with shards`)
  }
  return [...small, index, ...shards]
}

/** The commit that a revision meant when it was last fetched, if its files are here; a commit means itself. */
async function knownCommit(place: string, { revision = 'main' }: AdapterRef): Promise<string | undefined> {
  const remembered = await readFile(refFile(place, revision), 'utf8').catch(() => undefined)
  for (const commit of [revision, remembered?.trim()]) {
    if (commit !== undefined && /^[0-9a-f]{40}$/.test(commit) && (await isDirectory(join(place, commit)))) {
      return commit
    }
  }
  return undefined
}

async function rememberCommit(place: string, { revision = 'main' }: AdapterRef, commit: string): Promise<void> {
  await mkdir(join(place, 'refs'), { recursive: true })
  await writeFile(refFile(place, revision), `${commit}\n`)
}

/** Branch names may hold slashes. */
function refFile(place: string, revision: string): string {
  return join(place, 'refs', encodeURIComponent(revision))
}

/** One line; a refusal of the hub speaks of adapters, so only its code is taken. */
function toModelError(model: string, error: unknown): unknown {
  if (!(error instanceof RingletError)) {
    return error
  }
  switch (error.code) {
    case 'adapter_not_found':
      return new ModelError(`the hub has no model ${model}, or not for this token (HF_TOKEN)`, { cause: error })
    case 'field_invalid':
      return new ModelError(`'${model}' is no hub id: ${error.message}`, { cause: error })
    default:
      return new ModelError(`the model ${model} could not be fetched: ${error.message}`, { cause: error })
  }
}

async function isDirectory(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  )
}
