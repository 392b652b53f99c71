/**
 * May this caller read these adapters, now? Asked at the adapter's home at every request; only a "public" verdict is
 * remembered for a while (and a private one where the operator allows it), never longer than 60 s.
 */

import { LRUCache } from 'lru-cache'
import { type AdapterRef, type AdapterSelection, formatAdapterRef, selectionRefs } from '../../shared/adapter-ref.ts'
import { hashToken } from '../auth/token.ts'
import { toHex } from '../hex.ts'
import type { HomeVerdict } from './home-verdict.ts'
import { askHub } from './hub-home.ts'
import { askPredibase } from './pbase-home.ts'

export interface HomeCheckOptions {
  hubEndpoint: string
  /** The hub is not asked: its adapters are authorised by scope alone. */
  hubOffline: boolean
  pbaseEndpoint: string
  publicTtlMs: number
  privateTtlMs: number
  timeoutMs: number
  fetch: typeof fetch
  now: () => number
}

interface Remembered {
  revision: string | undefined
  expiresAt: number
}

/** Shared by the requests of an isolate. Private verdicts are keyed with a hash of the caller's token. */
const readable = new LRUCache<string, Remembered>({ max: 50_000 })

/** The selection with exact revisions, or the index of the first ref that the caller may not read. */
export type Authorization = { kind: 'allowed'; selection: AdapterSelection } | { kind: 'refused'; index: number }

export async function authorizeSelection(
  selection: AdapterSelection,
  adapterTokens: Readonly<Record<string, string>>,
  options: HomeCheckOptions,
): Promise<Authorization> {
  const refs = selectionRefs(selection)
  const verdicts = await Promise.all(refs.map((ref) => ask(ref, adapterTokens[formatAdapterRef(ref)], options)))
  const refused = verdicts.findIndex((verdict) => verdict.kind === 'refused')
  if (refused >= 0) {
    return { kind: 'refused', index: refused }
  }
  const pinned = refs.map((ref, i) => pin(ref, verdicts[i]))
  return { kind: 'allowed', selection: withRefs(selection, pinned) }
}

async function ask(ref: AdapterRef, token: string | undefined, options: HomeCheckOptions): Promise<HomeVerdict> {
  if (ref.source === 's3' || ref.source === 'local' || (ref.source === 'hub' && options.hubOffline)) {
    return { kind: 'readable', isPublic: false, revision: undefined }
  }
  const publicKey = `${homeOf(ref, options)}\0${formatAdapterRef(ref)}`
  const privateKey =
    options.privateTtlMs > 0 && token !== undefined ? `${publicKey}\0${toHex(await hashToken(token))}` : undefined
  const known = fresh(publicKey, options) ?? (privateKey === undefined ? undefined : fresh(privateKey, options))
  if (known !== undefined) {
    return { kind: 'readable', isPublic: false, revision: known.revision }
  }
  const askedAt = options.now()
  const { fetch, timeoutMs } = options
  const verdict =
    ref.source === 'hub'
      ? await askHub(ref, token, { endpoint: options.hubEndpoint, fetch, timeoutMs })
      : await askPredibase(ref, token, { endpoint: options.pbaseEndpoint, fetch, timeoutMs })
  if (verdict.kind === 'readable') {
    const [key, ttlMs] = verdict.isPublic ? [publicKey, options.publicTtlMs] : [privateKey, options.privateTtlMs]
    if (key !== undefined && ttlMs > 0) {
      readable.set(key, { revision: verdict.revision, expiresAt: askedAt + ttlMs })
    }
  }
  return verdict
}

function fresh(key: string, options: HomeCheckOptions): Remembered | undefined {
  const known = readable.get(key)
  return known !== undefined && known.expiresAt > options.now() ? known : undefined
}

function homeOf(ref: AdapterRef, options: HomeCheckOptions): string {
  return ref.source === 'hub' ? options.hubEndpoint : options.pbaseEndpoint
}

function pin(ref: AdapterRef, verdict: HomeVerdict | undefined): AdapterRef {
  return verdict?.kind === 'readable' && verdict.revision !== undefined ? { ...ref, revision: verdict.revision } : ref
}

function withRefs(selection: AdapterSelection, refs: readonly AdapterRef[]): AdapterSelection {
  switch (selection.kind) {
    case 'base':
      return selection
    case 'single':
      return { kind: 'single', ref: refs[0] ?? selection.ref }
    case 'merge':
      return { ...selection, parts: selection.parts.map((part, i) => ({ ...part, ref: refs[i] ?? part.ref })) }
  }
}
