/** May this tenant name this adapter, this base? Decided from the name and the tenant's scopes alone. Pure. */

import { ADAPTER_SOURCES, type AdapterRef } from '../../shared/adapter-ref.ts'
import type { Scopes } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { matchesGlob } from './glob.ts'

/** Why not; `undefined` when it may. The text repeats nothing that the caller did not write. */
export function scopeRefusal(ref: AdapterRef, scopes: Scopes): string | undefined {
  if (!scopes.sources.includes(ref.source)) {
    return `this token may not use adapters of source '${ref.source}'`
  }
  if (ref.source === 's3' && !scopes.buckets.some((bucket) => bucket === '*' || bucket === bucketOf(ref))) {
    return 'this token may not use adapters of this S3 bucket'
  }
  if (!scopes.adapters.some((pattern) => allows(pattern, ref))) {
    return 'this token may not use adapters of this name'
  }
  return undefined
}

/** A pattern with a source in front is asked of the whole name alone: ids too may begin with a word and a colon. */
function allows(pattern: string, { source, id }: AdapterRef): boolean {
  const saysSource = ADAPTER_SOURCES.some((known) => pattern.startsWith(`${known}:`))
  return matchesGlob(pattern, `${source}:${id}`) || (!saysSource && matchesGlob(pattern, id))
}

export function mayUseBase(name: string, scopes: Scopes): boolean {
  return scopes.models.some((pattern) => matchesGlob(pattern, name))
}

/**
 * Ids whose meaning could differ between the pattern that allowed them and the home that resolves them are refused:
 * `team-a/../team-b/x` matches `team-a/*`. So are those that the home could never have. `param`: where the caller has the id.
 */
export function checkPlainId(ref: AdapterRef, param = 'adapter_id'): void {
  const segments = ref.id.split('/')
  const absolute = ref.source === 'local' && segments[0] === ''
  const inner = absolute ? segments.slice(1) : segments
  const trailing = inner.at(-1) === '' && inner.length > 1
  const names = trailing ? inner.slice(0, -1) : inner
  if (ref.id.includes('\\') || names.some((name) => name === '' || name === '.' || name === '..')) {
    throw new RingletError('field_invalid', "an adapter id has no empty, '.' or '..' parts and no backslash", { param })
  }
  if (ref.source === 's3' && names.length < 2) {
    throw new RingletError('field_invalid', "an s3 adapter id is 's3://bucket/prefix' or 'bucket/prefix'", { param })
  }
  if (ref.source === 'pbase' && names.length > 2) {
    throw new RingletError('field_invalid', "a pbase adapter id is 'repo' or 'repo/version'", { param })
  }
}

function bucketOf(ref: AdapterRef): string {
  return ref.id.slice(0, ref.id.indexOf('/'))
}
