/** Adapters on the Hugging Face hub, or on a server with its API (`HF_ENDPOINT`). */

import type { ListFileEntry } from '@huggingface/hub'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import { fetchFailure } from '../../fetch-failure.ts'
import {
  type AdapterSourceReader,
  chooseFiles,
  notFound,
  type ResolvedAdapter,
  type SourceAccess,
  type SourceFile,
  unreachable,
} from './adapter-source.ts'
import { type Fetch, isTransient, readRange } from './http-home.ts'

export interface HubConfig {
  /** e.g. `https://huggingface.co`, without a trailing slash. */
  endpoint: string
  /** `HF_HUB_OFFLINE`: never ask the hub; what is on disk is served. */
  offline: boolean
}

/** `org/name` (or a bare name, as the oldest repositories have); `.` and `..` would change the path. */
const REPO_ID = /^(?!.*(?:^|\/)\.{1,2}(?:\/|$))[\w.-]{1,96}(?:\/[\w.-]{1,96})?$/
const REVISION = /^(?!.*\.\.)[\w][\w./-]{0,254}$/
const COMMIT = /^[0-9a-f]{40}$/

/** Loaded where a hub is asked: it takes 8 MB, and many nodes have their adapters elsewhere. */
const hubLibrary = () => import('@huggingface/hub')

export function createHubSource(config: HubConfig, fetch: Fetch): AdapterSourceReader {
  const endpoint = config.endpoint.replace(/\/+$/, '')
  return {
    isExact: (ref) => ref.revision !== undefined && COMMIT.test(ref.revision),
    resolve: async (ref, access) => {
      checkRef(ref)
      if (config.offline) {
        throw unreachable(ref, 'the node is in offline mode and does not hold it')
      }
      const authorised = withToken(fetch, endpoint, access)
      try {
        return await resolve(ref, endpoint, authorised)
      } catch (error) {
        throw await toRefusal(ref, access, error)
      }
    },
  }
}

/** Every file of a repository at one commit. */
export interface HubRepository {
  exact: AdapterRef
  entries: HubEntry[]
}
export type HubEntry = ListFileEntry & { name: string }

export async function listRepository(ref: AdapterRef, endpoint: string, fetch: Fetch): Promise<HubRepository> {
  const { listFiles, modelInfo } = await hubLibrary()
  const name = ref.id
  const info = await modelInfo({
    name,
    hubUrl: endpoint,
    fetch,
    revision: ref.revision ?? 'main',
    additionalFields: ['sha'],
  })
  const { sha } = info
  if (typeof sha !== 'string' || !COMMIT.test(sha)) {
    throw unreachable(ref, 'it named no commit')
  }
  const entries: HubEntry[] = []
  for await (const entry of listFiles({ repo: { type: 'model', name }, revision: sha, hubUrl: endpoint, fetch })) {
    if (entry.type === 'file') {
      entries.push({ ...entry, name: entry.path })
    }
  }
  return { exact: { source: 'hub', id: name, revision: sha }, entries }
}

async function resolve(ref: AdapterRef, endpoint: string, fetch: Fetch): Promise<ResolvedAdapter> {
  const { exact, entries } = await listRepository(ref, endpoint, fetch)
  const chosen = chooseFiles(exact, entries)
  // A gated repository shows its list to everybody; the right is for its files.
  const weights = { repo: { type: 'model' as const, name: exact.id }, path: chosen[1].path, hubUrl: endpoint, fetch }
  const { fileDownloadInfo } = await hubLibrary()
  if ((await fileDownloadInfo({ ...weights, revision: exact.revision! })) === null) {
    throw notFound(exact)
  }
  return resolveFiles(exact, chosen, endpoint, fetch)
}

/** Chosen files of a repository, ready to be downloaded. */
export function resolveFiles(
  exact: AdapterRef,
  chosen: readonly HubEntry[],
  endpoint: string,
  fetch: Fetch,
): ResolvedAdapter {
  const { id, revision } = exact
  const contents = chosen.map((file) => [file.name, file.lfs?.oid ?? file.oid])
  return {
    ref: exact,
    contentKey: JSON.stringify(['hub', endpoint, id, revision, contents]),
    files: chosen.map((file) => toSourceFile(file, `${endpoint}/${id}/resolve/${revision}/${file.name}`, fetch)),
  }
}

/** A file in LFS is named by its SHA-256, any other by git's blob id. */
function toSourceFile(entry: HubEntry, url: string, fetch: Fetch): SourceFile {
  return {
    name: entry.name,
    bytes: entry.lfs?.size ?? entry.size,
    checks: entry.lfs === undefined ? { gitBlobSha1: entry.oid } : { sha256: entry.lfs.oid },
    read: (start, end, signal) => readRange(fetch, url, {}, { start, end }, signal),
  }
}

/**
 * The library takes only tokens that start with `hf_`, so the header is set here; and only for the hub itself: files may be
 * elsewhere (a CDN, by redirect), and the token is not theirs.
 */
export function withToken(fetch: Fetch, endpoint: string, access: SourceAccess): Fetch {
  const origin = new URL(endpoint).origin
  return (input, init) => {
    const headers = new Headers(init?.headers)
    const url = new URL(input instanceof Request ? input.url : input)
    if (access.token !== undefined && url.origin === origin) {
      headers.set('authorization', `Bearer ${access.token}`)
    }
    return fetch(url, { ...init, headers, signal: init?.signal ?? access.signal })
  }
}

export async function toRefusal(ref: AdapterRef, access: SourceAccess, error: unknown): Promise<unknown> {
  if (error instanceof RingletError) {
    return error
  }
  access.signal.throwIfAborted()
  const { HubApiError } = await hubLibrary()
  if (error instanceof HubApiError) {
    return isTransient(error.statusCode)
      ? unreachable(ref, `it answered ${error.statusCode}`, error)
      : notFound(ref, error)
  }
  // A code alone (ECONNREFUSED, ENOTFOUND): words may hold addresses that are signed.
  const why = fetchFailure(error)
  return unreachable(ref, /^[A-Z][A-Z0-9_]+$/.test(why) ? `it does not answer (${why})` : 'no usable answer', error)
}

export function checkRef(ref: AdapterRef): void {
  if (!REPO_ID.test(ref.id)) {
    throw new RingletError('field_invalid', 'a hub id is "organisation/name" of letters, digits, ".", "_" and "-"', {
      param: 'adapter_id',
    })
  }
  if (ref.revision !== undefined && !REVISION.test(ref.revision)) {
    throw new RingletError('field_invalid', 'a revision is a branch, a tag or a commit', { param: 'adapter_id' })
  }
}
