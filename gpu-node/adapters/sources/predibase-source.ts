/**
 * Adapters of Predibase: its API says whether the caller may have a version, whether it is ready, and where in the operator's
 * bucket it lies. `repo/version`, or `repo` for the latest.
 */

import { z } from 'zod'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import { type AdapterSourceReader, notFound, type SourceAccess, unreachable } from './adapter-source.ts'
import { isTransient } from './http-home.ts'
import type { S3Home } from './s3-source.ts'

export interface PredibaseConfig {
  /** e.g. `https://api.app.predibase.com`. */
  endpoint: string
  /** Where Predibase keeps adapters (`PREDIBASE_MODEL_BUCKET`); without it the source is off. */
  bucket?: string
  /** `PREDIBASE_MODEL_FOLDER`: in front of every path in the bucket. */
  folder?: string
}

const TIMEOUT_MS = 10_000
const MAX_REPLY_BYTES = 1024 * 1024
/** States in which a version has no weights yet; in all others `adapterPath` decides. */
const NOT_READY = new Set(['pending', 'queued', 'stopping'])

const versionSchema = z.object({
  status: z.string().max(64).optional(),
  adapterPath: z.string().min(1).max(1024).nullish(),
})
const legacySchema = z.object({
  uuid: z.string().min(1).max(256),
  bestRunID: z.string().min(1).max(256),
  versionNumber: z.number().int().positive().optional(),
})

interface Place {
  path: string
  version: string | undefined
}

export function createPredibaseSource(config: PredibaseConfig, s3: S3Home): AdapterSourceReader {
  const endpoint = config.endpoint.replace(/\/+$/, '')
  return {
    // A version can be trained on, so it never means one content for ever.
    isExact: () => false,
    resolve: async (ref, access) => {
      const { repo, version } = parsePredibaseId(ref.id)
      if (access.token === undefined || access.token === '') {
        throw new RingletError('field_invalid', 'an adapter of source pbase needs an api_token', { param: 'api_token' })
      }
      if (config.bucket === undefined) {
        throw new RingletError('not_supported', 'this node has no bucket for adapters of source pbase')
      }
      const place = await locate(ref, endpoint, repo, version, access)
      const exact = place.version === undefined ? ref : { ...ref, id: `${repo}/${place.version}` }
      const prefix = joinPath(config.folder, place.path)
      const resolved = await s3.resolve(exact, config.bucket, prefix, access)
      return { ...resolved, contentKey: JSON.stringify(['pbase', endpoint, resolved.contentKey]) }
    },
  }
}

export function parsePredibaseId(id: string): { repo: string; version: string | undefined } {
  const [repo, version, ...rest] = id.split('/')
  const isName = (text: string) => text !== '' && text !== '.' && text !== '..'
  if (repo === undefined || !isName(repo) || rest.length > 0 || (version !== undefined && !isName(version))) {
    throw new RingletError('field_invalid', 'an adapter of source pbase is named "repo/version" or "repo"', {
      param: 'adapter_id',
    })
  }
  return { repo, version }
}

/** The current API for a named version; the older one for the latest, and for versions that only it knows. */
async function locate(
  ref: AdapterRef,
  endpoint: string,
  repo: string,
  version: string | undefined,
  access: SourceAccess,
): Promise<Place> {
  const name = encodeURIComponent(repo)
  if (version !== undefined) {
    const url = `${endpoint}/v2/repos/${name}/version/${encodeURIComponent(version)}`
    const reply = await get(ref, url, access)
    if (reply !== undefined) {
      return { path: readVersion(ref, reply), version }
    }
  }
  const query = version === undefined ? '' : `?version=${encodeURIComponent(version)}`
  const legacy = await get(ref, `${endpoint}/v1/models/version/name/${name}${query}`, access)
  if (legacy === undefined) {
    throw notFound(ref)
  }
  const parsed = legacySchema.safeParse(legacy)
  if (!parsed.success) {
    throw notReady(ref, 'it has no finished run')
  }
  const { uuid, bestRunID, versionNumber } = parsed.data
  return {
    path: `${uuid}/${bestRunID}/artifacts/model/model_weights`,
    version: version ?? (versionNumber === undefined ? undefined : String(versionNumber)),
  }
}

function readVersion(ref: AdapterRef, reply: unknown): string {
  const parsed = versionSchema.safeParse(reply)
  if (!parsed.success) {
    throw unreachable(ref, 'its reply names no version')
  }
  const { status, adapterPath } = parsed.data
  if (status !== undefined && NOT_READY.has(status)) {
    throw notReady(ref, `its status is ${status}; wait until its training has completed`)
  }
  if (adapterPath === null || adapterPath === undefined) {
    throw notReady(ref, 'it has no weights yet')
  }
  return adapterPath
}

/** `undefined`: the API does not know it, or not for this token. */
async function get(ref: AdapterRef, url: string, access: SourceAccess): Promise<unknown> {
  try {
    // Loaded when first used.
    const { request } = await import('undici')
    const { statusCode, body } = await request(url, {
      headers: { authorization: `Bearer ${access.token}`, accept: 'application/json' },
      signal: AbortSignal.any([access.signal, AbortSignal.timeout(TIMEOUT_MS)]),
    })
    if (statusCode !== 200) {
      await body.dump()
      if (isTransient(statusCode)) {
        throw unreachable(ref, `it answered ${statusCode}`)
      }
      return undefined
    }
    let text = ''
    for await (const chunk of body.setEncoding('utf8')) {
      text += chunk
      if (text.length > MAX_REPLY_BYTES) {
        throw unreachable(ref, `its reply is longer than ${MAX_REPLY_BYTES} characters`)
      }
    }
    return JSON.parse(text)
  } catch (error) {
    if (error instanceof RingletError) {
      throw error
    }
    access.signal.throwIfAborted()
    throw unreachable(ref, 'no usable answer', error)
  }
}

function notReady(ref: AdapterRef, why: string): RingletError {
  return new RingletError('adapter_not_ready', `adapter pbase:${ref.id} is not ready: ${why}`, {
    retryAfterSeconds: 30,
  })
}

function joinPath(folder: string | undefined, path: string): string {
  return [folder ?? '', path]
    .map((part) => part.replace(/^\/+|\/+$/g, ''))
    .filter((part) => part !== '')
    .join('/')
}
