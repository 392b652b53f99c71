/** Where adapters come from: one file a source, one interface. A source knows its home's protocol and nothing of caching. */

import { type AdapterRef, formatAdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import type { FileVersions } from '../file-version.ts'
import { CONFIG_FILE, WEIGHT_FILES } from '../weight-file.ts'

export interface SourceAccess {
  /** The caller's token for this home; any string. */
  token: string | undefined
  signal: AbortSignal
}

/** A file at its home, fixed: `read` gives the bytes of the version that `contentKey` names, or throws. */
export interface SourceFile {
  name: string
  bytes: number
  /** What the home says of the content; each that is there is checked after a download. Hex. */
  checks: { sha256?: string; gitBlobSha1?: string; md5?: string }
  /** Bytes `[start, end)`. A connection that breaks makes the iteration throw. */
  read(start: number, end: number, signal: AbortSignal): AsyncIterable<Uint8Array>
}

export interface ResolvedAdapter {
  /** With its exact revision, where the home has revisions. */
  ref: AdapterRef
  /** Equal keys are equal bytes: home, place and version of every file. */
  contentKey: string
  /** adapter_config.json and one weight file. */
  files: SourceFile[]
  /** Set where the files can be read in place, with what they were when they were looked at. */
  directory?: string
  versions?: FileVersions
}

export interface AdapterSourceReader {
  /**
   * Finds the adapter with the caller's own right. Throws `RingletError`: adapter_not_found (also for "not for you"),
   * adapter_refused (no adapter in there), adapter_not_ready, adapter_home_unreachable, scope_denied, field_invalid.
   */
  resolve(ref: AdapterRef, access: SourceAccess): Promise<ResolvedAdapter>
  /** A ref that can only ever mean one content, so that a known one needs no look at its home. */
  isExact(ref: AdapterRef): boolean
}

/** The same words whether the adapter does not exist or is not this caller's. */
export function notFound(ref: AdapterRef, cause?: unknown): RingletError {
  return new RingletError(
    'adapter_not_found',
    `adapter ${formatAdapterRef(ref)} was not found, or not with this token`,
    {
      cause,
    },
  )
}

/** `why` is for the caller: it names no address and no secret. */
export function unreachable(ref: AdapterRef, why: string, cause?: unknown): RingletError {
  return new RingletError(
    'adapter_home_unreachable',
    `the home of ${formatAdapterRef(ref)} could not be used: ${why}`,
    {
      retryAfterSeconds: 5,
      cause,
    },
  )
}

/** The config and the preferred weight file, or a refusal. */
export function chooseFiles<T extends { name: string }>(ref: AdapterRef, files: readonly T[]): [T, T] {
  const byName = new Map(files.map((file) => [file.name, file]))
  const config = byName.get(CONFIG_FILE)
  const weights = WEIGHT_FILES.map((name) => byName.get(name)).find((file) => file !== undefined)
  if (config === undefined || weights === undefined) {
    const missing = config === undefined ? CONFIG_FILE : WEIGHT_FILES.join(' or ')
    throw new RingletError('adapter_refused', `${formatAdapterRef(ref)} is no PEFT adapter: it has no ${missing}`)
  }
  return [config, weights]
}
