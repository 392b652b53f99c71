/** How many tokens a request may come to, before any node has counted: for the tenant's limits. Pure. */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import type { AdmissionAsk } from '../tenants/limit-policy.ts'

/** English text has about four bytes a token; the true number comes with the answer. */
const BYTES_PER_TOKEN = 4
/** What a sequence without `max_tokens` is taken to generate. */
const TYPICAL_NEW_TOKENS = 256

export interface RequestSize extends AdmissionAsk {
  /** Sequences that run; a limit on new tokens is shared among them. */
  sequences: number
}

export function generateSize(request: GenerateRequest, bodyLength: number, maxPositions: number): RequestSize {
  const sequences = request.prompts.length * request.bestOf
  return {
    promptTokens: Math.ceil(bodyLength / BYTES_PER_TOKEN),
    likelyNewTokens: sequences * Math.min(request.maxNewTokens ?? TYPICAL_NEW_TOKENS, maxPositions),
    mostNewTokens: sequences * Math.min(request.maxNewTokens ?? maxPositions, maxPositions),
    sequences,
  }
}

/** Embeddings and tokenization generate nothing. */
export function promptSize(bodyLength: number): RequestSize {
  return { promptTokens: Math.ceil(bodyLength / BYTES_PER_TOKEN), likelyNewTokens: 0, mostNewTokens: 0, sequences: 1 }
}
