/** How many tokens a request may come to, before any node has counted: for the tenant's limits. Pure. */

import type { GenerateRequest } from '../../shared/api/generate-request.ts'
import type { AdmissionAsk } from '../tenants/limit-policy.ts'

/** English text has about four bytes a token; the true number comes with the answer. */
const BYTES_PER_TOKEN = 4
/** What a sequence without `max_tokens` is taken to generate. */
const TYPICAL_NEW_TOKENS = 256

/** `bodyText`: as it came; its JSON around the prompt stands for what a chat template puts around it. */
export function generateSize(request: GenerateRequest, bodyText: string, maxPositions: number): AdmissionAsk {
  const sequences = request.prompts.length * request.bestOf
  return {
    ...promptSize(bodyText, request.prompts.length * maxPositions),
    likelyNewTokens: sequences * Math.min(request.maxNewTokens ?? TYPICAL_NEW_TOKENS, maxPositions),
    mostNewTokens: sequences * Math.min(request.maxNewTokens ?? maxPositions, maxPositions),
    sequences,
  }
}

/**
 * Embeddings and tokenization generate nothing. A token may be as little as one byte: a digit, or a third of a Chinese
 * character; `mostTokens`: a longer prompt is refused by every node.
 */
export function promptSize(bodyText: string, mostTokens: number): AdmissionAsk {
  const bytes = new TextEncoder().encode(bodyText).length
  return {
    promptTokens: Math.ceil(bytes / BYTES_PER_TOKEN),
    mostPromptTokens: Math.min(bytes, mostTokens),
    likelyNewTokens: 0,
    mostNewTokens: 0,
    sequences: 1,
  }
}
