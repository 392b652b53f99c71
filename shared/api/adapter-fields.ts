/** The fields of a body that say which adapter answers: LoRAX's, with Ringlet's per-part sources and tokens for merges. */

import { z } from 'zod'
import { MAX_ADAPTER_ID_LENGTH, MERGE_STRATEGIES, SIGN_METHODS } from '../adapter-ref.ts'
import { RingletError } from '../errors.ts'
import { fieldInvalid, formatPath, type Path } from './body-parse.ts'
import { sortFields } from './field-rules.ts'
import type { ApiStyle, MergeFields, MergePartFields } from './generate-request.ts'

/** Each part costs a load and a share of rank; PEFT users merge two to five. */
export const MAX_MERGE_PARTS = 32
/** Longer than any token a home gives out; JWTs stay below 4 KiB. */
export const MAX_TOKEN_LENGTH = 8192

export const adapterIdSchema = z.string().max(MAX_ADAPTER_ID_LENGTH)
/** A header must be able to carry it. */
export const tokenSchema = z
  .string()
  .max(MAX_TOKEN_LENGTH)
  .regex(/^[\x21-\x7e]*$/, 'a token has visible ASCII characters only')

/** Where a body of this API has a field that both APIs know. */
export function fieldIn(api: ApiStyle, name: string): string {
  return api === 'openai' ? name : `parameters.${name}`
}

/** Where a body of this API names its adapter. */
export function adapterField(api: ApiStyle): string {
  return fieldIn(api, api === 'openai' ? 'model' : 'adapter_id')
}

export const MERGE_FIELDS = [
  'ids',
  'weights',
  'merge_strategy',
  'density',
  'majority_sign_method',
  'seed',
  'sources',
  'api_tokens',
] as const

export const mergedAdaptersSchema = z.looseObject({
  ids: z.array(adapterIdSchema.min(1)).max(MAX_MERGE_PARTS),
  weights: z.array(z.number()),
  /** Any letter case; absent: `linear`. */
  merge_strategy: z.string().nullish(),
  density: z.number().nullish(),
  majority_sign_method: z.string().nullish(),
  seed: z.int().nonnegative().nullish(),
  /** One for each id; `null` leaves that id to `adapter_source`. */
  sources: z.array(z.string().nullable()).nullish(),
  /** One for each id; `null` leaves that id to `api_token`. */
  api_tokens: z.array(tokenSchema.nullable()).nullish(),
})
export type MergedAdapters = z.infer<typeof mergedAdaptersSchema>

/** LoRAX's rules and messages for the counts; Ringlet's for what LoRAX takes silently (`density` absent, unknown names). */
export function toMergeFields(given: MergedAdapters, path: Path): MergeFields {
  sortFields(given, path, { known: MERGE_FIELDS })
  if (given.ids.length === 0) {
    throw fieldInvalid([...path, 'ids'], 'at least one adapter ID must be provided when setting `adapters`')
  }
  if (given.ids.length !== given.weights.length) {
    throw fieldInvalid([...path, 'weights'], 'number of adapter IDs must match number of adapter weights')
  }
  const sources = matching(given.sources, given.ids.length, [...path, 'sources'])
  const tokens = matching(given.api_tokens, given.ids.length, [...path, 'api_tokens'])
  const strategy = oneOf(given.merge_strategy ?? 'linear', MERGE_STRATEGIES, [...path, 'merge_strategy'])
  const fields: MergeFields = {
    strategy,
    parts: given.ids.map((id, i) => {
      const part: MergePartFields = { id, weight: given.weights[i] ?? 0 }
      const source = sources[i]
      const token = tokens[i]
      return { ...part, ...(source ? { source } : {}), ...(token ? { token } : {}) }
    }),
  }
  if (strategy !== 'linear' && strategy !== 'cat') {
    fields.density = checkDensity(given.density, strategy, [...path, 'density'])
  }
  if (given.majority_sign_method != null) {
    fields.signMethod = oneOf(given.majority_sign_method, SIGN_METHODS, [...path, 'majority_sign_method'])
  }
  if (given.seed != null) {
    fields.seed = given.seed
  }
  return fields
}

/** LoRAX takes a missing density as 0, which answers with the base model; so 0 and absent are refused. */
function checkDensity(density: number | null | undefined, strategy: string, path: Path): number {
  if (density == null) {
    throw mergeInvalid(path, `\`density\` must be given for \`${strategy}\``)
  }
  if (!(density > 0 && density <= 1)) {
    throw mergeInvalid(path, `\`density\` must be > 0.0 and <= 1.0. Given: ${density}`)
  }
  return density
}

function matching<T>(list: readonly T[] | null | undefined, length: number, path: Path): readonly T[] {
  if (list == null) {
    return []
  }
  if (list.length !== length) {
    throw fieldInvalid(
      path,
      `\`${formatPath(path)}\` must have one entry for each of the ${length} ids. Given: ${list.length}`,
    )
  }
  return list
}

function oneOf<Name extends string>(given: string, known: readonly Name[], path: Path): Name {
  const found = known.find((name) => name === given.toLowerCase())
  if (found === undefined) {
    const shown = given.slice(0, 32).replace(/[^\x20-\x7e]/g, '?')
    throw mergeInvalid(path, `\`${formatPath(path)}\` is one of ${known.join(', ')}. Given: ${shown}`)
  }
  return found
}

function mergeInvalid(path: Path, message: string): RingletError {
  return new RingletError('merge_invalid', message, { param: formatPath(path) })
}
