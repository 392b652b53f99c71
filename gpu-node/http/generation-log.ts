/** One line in the node's log for each generating request that ran: who asked, what it cost, and where its time went. */

import { type AdapterSelection, selectionKey } from '../../shared/adapter-ref.ts'
import type { AdapterTier } from '../../shared/fleet.ts'
import type { GenerationTimings } from './generation.ts'

export interface EndedGeneration {
  requestId: string
  tenantId: string
  adapter: AdapterSelection
  /** Where the adapter was found; the base has none. */
  tier: AdapterTier | undefined
  sequences: number
  promptTokens: number
  /** Of these, how many were not run because their prefix was saved. */
  cachedTokens: number
  generatedTokens: number
  timings: GenerationTimings
  /** `ok`, `client_gone` or the error's code. */
  outcome: string
}

/**
 * Milliseconds in the order in which they pass: `prepareMs` (template, tokens), `loadMs` (adapter, grammar beside it),
 * `queueMs` until the first sequence runs, `prefillMs` until its first token, `decodeMs` from then on; `totalMs` is all of it.
 */
export function generationLine(ended: EndedGeneration): Record<string, string | number> {
  const { timings, tier, adapter, tenantId, ...counts } = ended
  const { arrivedAt, preparedAt, loadMs, queuedMs, prefillMs, firstTokenAt, endedAt = preparedAt } = timings
  return {
    requestId: counts.requestId,
    tenant: tenantId,
    adapter: selectionKey(adapter),
    ...(tier === undefined ? {} : { tier }),
    sequences: counts.sequences,
    promptTokens: counts.promptTokens,
    cachedTokens: counts.cachedTokens,
    generatedTokens: counts.generatedTokens,
    prepareMs: tenths(preparedAt - arrivedAt),
    ...(loadMs === undefined ? {} : { loadMs: tenths(loadMs) }),
    ...(queuedMs === undefined ? {} : { queueMs: tenths(queuedMs) }),
    ...(prefillMs === undefined ? {} : { prefillMs: tenths(prefillMs) }),
    ...(firstTokenAt === undefined ? {} : { decodeMs: tenths(endedAt - firstTokenAt) }),
    totalMs: tenths(endedAt - arrivedAt),
    outcome: counts.outcome,
  }
}

function tenths(ms: number): number {
  return Math.round(ms * 10) / 10
}
