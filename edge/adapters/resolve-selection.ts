/** What a request asks for, in its own words → refs that this tenant may name. Knows no homes and no nodes. */

import {
  type AdapterRef,
  type AdapterSelection,
  type AdapterSource,
  formatAdapterRef,
  type NameFields,
  parseAdapterName,
  selectionKey,
  selectionRefs,
} from '../../shared/adapter-ref.ts'
import { adapterField, fieldIn } from '../../shared/api/adapter-fields.ts'
import type { AdapterFields, ApiStyle, MergeFields } from '../../shared/api/generate-request.ts'
import type { Scopes } from '../../shared/edge-api.ts'
import { RingletError } from '../../shared/errors.ts'
import { checkPlainId, mayUseBase, scopeRefusal } from './adapter-scope.ts'

export interface ResolveContext {
  api: ApiStyle
  baseModels: readonly string[]
  scopes: Scopes
  defaultSource: AdapterSource
  resolveAlias: (alias: string) => Promise<AdapterRef | undefined>
  /** The header `x-adapter-token`; the body's own tokens win. */
  headerToken: string | undefined
}

export interface ResolvedSelection {
  /** Aliases resolved; revisions only where the caller or an alias pinned one. */
  selection: AdapterSelection
  /** As the caller wrote them, and where; one for each ref of the selection. */
  named: { name: string; field: string }[]
  placementKey: string
  /** By ref spelling. */
  adapterTokens: Record<string, string>
  /** The name in usage records: `base`, `source:id`, or a merge's refs. */
  usageName: string
}

/** All adapter tokens together; a Node server reads at most 16 KiB of headers. */
const MAX_TOKENS_LENGTH = 8_192

export async function resolveSelection(fields: AdapterFields, context: ResolveContext): Promise<ResolvedSelection> {
  const adapterTokens: Record<string, string> = {}
  const selection = await toSelection(fields, context, adapterTokens)
  if (Object.values(adapterTokens).reduce((sum, token) => sum + token.length, 0) > MAX_TOKENS_LENGTH) {
    throw new RingletError('field_invalid', `adapter tokens have ${MAX_TOKENS_LENGTH} characters at most together`, {
      param: fieldIn(context.api, 'api_token'),
    })
  }
  const named = fields.merge?.parts.map(({ id }, i) => ({ name: id, field: partField(context.api, 'ids', i) })) ?? [
    { name: fields.adapterId ?? fields.model ?? '', field: adapterField(context.api) },
  ]
  return { selection, named, placementKey: selectionKey(selection), adapterTokens, usageName: usageName(selection) }
}

async function toSelection(
  fields: AdapterFields,
  context: ResolveContext,
  tokens: Record<string, string>,
): Promise<AdapterSelection> {
  const name = fields.adapterId ?? fields.model ?? ''
  // An empty `model` may be an adapter that a program forgot to fill in: on OpenAI's routes it is no name of the base.
  const unnamed = name === '' && context.api === 'lorax'
  const namesBase = unnamed || (fields.adapterSource === undefined && context.baseModels.includes(name))
  if (fields.merge !== undefined) {
    if (!namesBase) {
      throw new RingletError('merge_invalid', 'with `merged_adapters`, `model` is the name of the base model', {
        param: 'model',
      })
    }
    return toMerge(fields.merge, fields, context, tokens)
  }
  if (namesBase) {
    return toBase(name, context)
  }
  const at = { name: adapterField(context.api), source: fieldIn(context.api, 'adapter_source') }
  if (name === '') {
    throw new RingletError('model_not_found', '`model` is empty; the base model is asked for by its own name', {
      param: at.name,
    })
  }
  const ref = await toRef(name, fields.adapterSource, at, context)
  keepToken(tokens, ref, fields.apiToken ?? context.headerToken)
  return { kind: 'single', ref }
}

function toBase(name: string, context: ResolveContext): AdapterSelection {
  const base = name === '' ? context.baseModels[0] : name
  if (base === undefined) {
    throw noNode()
  }
  if (!mayUseBase(base, context.scopes)) {
    throw new RingletError('scope_denied', 'this token may not use the base model', {
      param: adapterField(context.api),
    })
  }
  return { kind: 'base' }
}

async function toMerge(
  merge: MergeFields,
  fields: AdapterFields,
  context: ResolveContext,
  tokens: Record<string, string>,
): Promise<AdapterSelection> {
  const common = fields.apiToken ?? context.headerToken
  /** Homes that would see the token which no part calls its own. */
  const homes = new Set<AdapterSource>()
  const parts = await Promise.all(
    merge.parts.map(async (part, i) => {
      const source = part.source ?? fields.adapterSource
      const at = {
        name: partField(context.api, 'ids', i),
        source:
          part.source === undefined ? fieldIn(context.api, 'adapter_source') : partField(context.api, 'sources', i),
      }
      if (source === undefined && context.baseModels.includes(part.id)) {
        throw new RingletError('merge_invalid', 'the base model cannot be a part of a merge', { param: at.name })
      }
      const ref = await toRef(part.id, source, at, context)
      keepToken(tokens, ref, part.token ?? common)
      if (part.token === undefined && common !== undefined && checksCallers(ref)) {
        homes.add(ref.source)
      }
      return { ref, weight: part.weight }
    }),
  )
  if (homes.size > 1) {
    const message = `the parts live at ${[...homes].sort().join(' and ')}: give each its token in \`api_tokens\``
    throw new RingletError('merge_invalid', message, { param: fieldIn(context.api, 'merged_adapters.api_tokens') })
  }
  return {
    kind: 'merge',
    parts,
    strategy: merge.strategy,
    ...(merge.density === undefined ? {} : { density: merge.density }),
    ...(merge.signMethod === undefined ? {} : { signMethod: merge.signMethod }),
    ...(merge.seed === undefined ? {} : { seed: merge.seed }),
  }
}

/** A name out of scope is refused as such; an alias out of scope looks like one that does not exist. */
async function toRef(
  name: string,
  source: string | undefined,
  at: NameFields,
  context: ResolveContext,
): Promise<AdapterRef> {
  const parsed = parseAdapterName(name, source, context.defaultSource, at)
  if (parsed.kind === 'ref') {
    checkPlainId(parsed.ref, at.name)
    const refusal = scopeRefusal(parsed.ref, context.scopes)
    if (refusal !== undefined) {
      throw new RingletError('scope_denied', refusal, { param: at.name })
    }
    return parsed.ref
  }
  const target = await context.resolveAlias(parsed.alias)
  if (target === undefined || scopeRefusal(target, context.scopes) !== undefined) {
    // With no node up nobody knows the base's name, and this may be it.
    throw context.baseModels.length === 0 ? noNode() : adapterNotFound(name, context.api, at.name)
  }
  return target
}

function noNode(): RingletError {
  return new RingletError('no_node', 'no node is in the fleet', { retryAfterSeconds: 2 })
}

/** The same words whether the adapter does not exist or is not for this caller. */
export function adapterNotFound(name: string, api: ApiStyle, param: string): RingletError {
  const shown = name.slice(0, 128).replace(/[^\x20-\x7e]/g, '?')
  const [code, kind] =
    api === 'openai' ? (['model_not_found', 'model'] as const) : (['adapter_not_found', 'adapter'] as const)
  return new RingletError(code, `the ${kind} '${shown}' does not exist or is not for this caller`, { param })
}

function partField(api: ApiStyle, list: 'ids' | 'sources', i: number): string {
  return fieldIn(api, `merged_adapters.${list}[${i}]`)
}

function keepToken(tokens: Record<string, string>, ref: AdapterRef, token: string | undefined): void {
  if (token !== undefined && checksCallers(ref)) {
    tokens[formatAdapterRef(ref)] = token
  }
}

/** Only homes that check callers see their tokens; an s3 or local adapter is the operator's to allow. */
export function checksCallers({ source }: AdapterRef): boolean {
  return source === 'hub' || source === 'pbase'
}

function usageName(selection: AdapterSelection): string {
  const names = selectionRefs(selection).map((ref) => `${ref.source}:${ref.id}`)
  return selection.kind === 'base' ? 'base' : names.join(' + ').slice(0, 1024)
}
