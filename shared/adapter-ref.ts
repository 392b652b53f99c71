/** How an adapter is named: source, id and revision; and what a request may select with such names. */

import { RingletError } from './errors.ts'

export const ADAPTER_SOURCES = ['hub', 'pbase', 's3', 'local'] as const
export type AdapterSource = (typeof ADAPTER_SOURCES)[number]

/** One adapter at its home. Without `revision`: the newest (hub: `main`). */
export interface AdapterRef {
  source: AdapterSource
  id: string
  revision?: string
}

/** A name as a caller writes it: either it says its source, or it is an alias the operator registered. */
export type AdapterName = { kind: 'ref'; ref: AdapterRef } | { kind: 'alias'; alias: string }

/** Longest accepted adapter id, in UTF-16 units: longer than any hub id or S3 key in sensible use. */
export const MAX_ADAPTER_ID_LENGTH = 1024

export const MERGE_STRATEGIES = ['linear', 'ties', 'dare_linear', 'dare_ties', 'cat'] as const
export type MergeStrategy = (typeof MERGE_STRATEGIES)[number]
export const SIGN_METHODS = ['total', 'frequency'] as const
export type SignMethod = (typeof SIGN_METHODS)[number]

export interface MergePart {
  ref: AdapterRef
  weight: number
}

/** What a request runs on, resolved: the base, one adapter, or several merged. `density` is in [0, 1]. */
export type AdapterSelection =
  | { kind: 'base' }
  | { kind: 'single'; ref: AdapterRef }
  | {
      kind: 'merge'
      parts: MergePart[]
      strategy: MergeStrategy
      density?: number
      signMethod?: SignMethod
      /** DARE's random drop. The same seed keeps the same elements. */
      seed?: number
    }

export function isAdapterSource(value: string): value is AdapterSource {
  return (ADAPTER_SOURCES as readonly string[]).includes(value)
}

/** Where the caller has the name and its source: refusals say so. */
export interface NameFields {
  name: string
  source: string
}
const NAME_FIELDS: NameFields = { name: 'adapter_id', source: 'adapter_source' }

/**
 * Reads an adapter's name. With `source` (any letter case, LoRAX's `adapter_source`) the id is taken literally; a source
 * written in front (`local:orders-json`, `hub:org/name@rev`, `s3://bucket/prefix`) counts the same. Without one, an id with
 * `/` belongs to `defaultSource`, and an id without `/` is an alias.
 */
export function parseAdapterName(
  name: string,
  source?: string,
  defaultSource: AdapterSource = 'hub',
  fields = NAME_FIELDS,
): AdapterName {
  checkId(name, fields.name)
  if (source !== undefined) {
    const wanted = source.toLowerCase()
    if (!isAdapterSource(wanted)) {
      const known = ADAPTER_SOURCES.join(', ')
      throw new RingletError('field_invalid', `adapter_source '${printable(source)}' is unknown; known: ${known}`, {
        param: fields.source,
      })
    }
    return { kind: 'ref', ref: toRef(wanted, stripPrefix(wanted, name)) }
  }
  if (name.startsWith('s3://')) {
    return { kind: 'ref', ref: toRef('s3', name) }
  }
  const colon = name.indexOf(':')
  const prefix = colon > 0 ? name.slice(0, colon).toLowerCase() : ''
  if (isAdapterSource(prefix)) {
    const id = name.slice(colon + 1)
    checkId(id, fields.name)
    return { kind: 'ref', ref: toRef(prefix, id) }
  }
  if (name.includes('/')) {
    return { kind: 'ref', ref: toRef(defaultSource, name) }
  }
  return { kind: 'alias', alias: name }
}

/** The canonical spelling, `source:id@revision`; equal refs have equal spellings. */
export function formatAdapterRef(ref: AdapterRef): string {
  return `${ref.source}:${ref.id}${ref.revision === undefined ? '' : `@${ref.revision}`}`
}

/** A key for placement and for tickets: every part of a selection that changes the adapter's weights. */
export function selectionKey(selection: AdapterSelection): string {
  switch (selection.kind) {
    case 'base':
      return 'base'
    case 'single':
      return formatAdapterRef(selection.ref)
    case 'merge':
      return JSON.stringify([
        selection.strategy,
        selection.density ?? null,
        selection.signMethod ?? null,
        selection.seed ?? null,
        selection.parts.map((part) => [formatAdapterRef(part.ref), part.weight]),
      ])
  }
}

/** The refs a selection names, in order. */
export function selectionRefs(selection: AdapterSelection): AdapterRef[] {
  switch (selection.kind) {
    case 'base':
      return []
    case 'single':
      return [selection.ref]
    case 'merge':
      return selection.parts.map((part) => part.ref)
  }
}

/** Only hub ids take `@revision`; for pbase the version is part of the id (`repo/version`), for s3 and local it has no meaning. */
function toRef(source: AdapterSource, id: string): AdapterRef {
  if (source === 'hub') {
    const at = id.lastIndexOf('@')
    if (at > 0 && at < id.length - 1) {
      return { source, id: id.slice(0, at), revision: id.slice(at + 1) }
    }
  }
  return { source, id: source === 's3' && id.startsWith('s3://') ? id.slice('s3://'.length) : id }
}

/** With the source given beside the id, the same source in front of the id is redundant, not part of it. */
function stripPrefix(source: AdapterSource, id: string): string {
  return id.toLowerCase().startsWith(`${source}:`) && !id.startsWith('s3://') ? id.slice(source.length + 1) : id
}

function checkId(id: string, param: string): void {
  if (id.length === 0 || id.length > MAX_ADAPTER_ID_LENGTH) {
    const limit = `1 to ${MAX_ADAPTER_ID_LENGTH} characters`
    throw new RingletError('field_invalid', `an adapter id has ${limit}; given: ${id.length}`, { param })
  }
  // Control characters would break headers and logs; no home uses them.
  if (/\p{Cc}/u.test(id)) {
    throw new RingletError('field_invalid', 'an adapter id has no control characters', { param })
  }
}

function printable(text: string): string {
  return text.slice(0, 64).replace(/[^\x20-\x7e]/g, '?')
}
