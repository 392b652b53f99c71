/** Headers of replies: which adapter answered, where, and how long what took. */

import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import { selectionRefs } from '../../shared/adapter-ref.ts'
import type { Generation } from './generation.ts'
import type { NodeContext } from './node-context.ts'

export function adapterHeaders(
  context: Pick<NodeContext, 'identity'>,
  selection: AdapterSelection,
  generation: Pick<Generation, 'adapter'> | undefined,
): Record<string, string> {
  const refs = selectionRefs(selection)
  const sources = [...new Set(refs.map((ref) => ref.source))]
  return {
    'x-ringlet-node': headerText(context.identity.nodeId),
    'x-model-id': headerText(context.identity.baseModel),
    ...(refs.length === 0
      ? {}
      : {
          'x-adapter-id': shorten(refs.map((ref) => headerText(ref.id)).join(',')),
          'x-adapter-source': sources.join(','),
        }),
    ...(generation?.adapter === undefined
      ? {}
      : { 'x-adapter-digest': generation.adapter.digest, 'x-adapter-cache': generation.adapter.cacheTier }),
  }
}

/** The ids of a merge of many long ones would be more than HTTP clients read in a header. */
const MAX_IDS_LENGTH = 4096

function shorten(ids: string): string {
  return ids.length > MAX_IDS_LENGTH ? `${ids.slice(0, MAX_IDS_LENGTH)}...` : ids
}

export function ignoredHeader(ignored: readonly string[]): Record<string, string> {
  return ignored.length === 0 ? {} : { 'x-ringlet-ignored': ignored.map(headerText).join(', ').slice(0, 1024) }
}

/** `queue`, `load` and `prefill` as far as they are known. */
export function serverTiming(generation: Generation): Record<string, string> {
  const { queuedMs, loadMs, prefillMs } = generation.timings
  const entries = Object.entries({ queue: queuedMs, load: loadMs, prefill: prefillMs })
  const known = entries.flatMap(([name, ms]) => (ms === undefined ? [] : [`${name};dur=${ms.toFixed(1)}`]))
  return known.length === 0 ? {} : { 'server-timing': known.join(', ') }
}

export function countHeaders(promptTokens: number, generatedTokens?: number): Record<string, string> {
  return {
    'x-prompt-tokens': String(promptTokens),
    ...(generatedTokens === undefined ? {} : { 'x-generated-tokens': String(generatedTokens) }),
  }
}

/** LoRAX's timings, whole milliseconds. */
export function loraxTimingHeaders(
  context: Pick<NodeContext, 'identity'>,
  generation: Generation,
  characters: number,
  promptTokens: number,
  generatedTokens: number,
): Record<string, string> {
  const { arrivedAt, preparedAt, firstTokenAt, queuedMs = 0, loadMs = 0, endedAt = preparedAt } = generation.timings
  const total = endedAt - arrivedAt
  const validation = preparedAt - arrivedAt
  const waited = queuedMs + loadMs
  const inference = Math.max(0, total - validation - waited)
  const afterFirst = endedAt - (firstTokenAt ?? endedAt)
  const ms = (value: number) => String(Math.round(value))
  return {
    'x-compute-type': computeType(context),
    'x-compute-time': ms(total),
    'x-compute-characters': String(characters),
    'x-total-time': ms(total),
    'x-total-tokens': String(promptTokens + generatedTokens),
    'x-skipped-tokens': '0',
    'x-validation-time': ms(validation),
    'x-queue-time': ms(waited),
    'x-inference-time': ms(inference),
    'x-time-per-token': ms(inference / Math.max(1, generatedTokens)),
    'x-time-to-first-token': ms(Math.max(0, (firstTokenAt ?? endedAt) - preparedAt - waited)),
    'x-time-per-output-token': ms(afterFirst / Math.max(1, generatedTokens - 1)),
  }
}

export function computeType(context: Pick<NodeContext, 'identity'>): string {
  return context.identity.device === 'cuda' ? 'gpu+optimized' : 'cpu+optimized'
}

/** Header values are visible ASCII (RFC 9110 §5.5); the rest is percent-encoded. */
function headerText(text: string): string {
  return text.replace(/[^\x21-\x24\x26-\x2b\x2d-\x7e]/gu, (character) => {
    try {
      return encodeURIComponent(character)
    } catch {
      // Half a surrogate pair.
      return '%EF%BF%BD'
    }
  })
}
