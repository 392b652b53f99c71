/** `logit_bias`: token id to additive bias, as OpenAI writes it. */

import { z } from 'zod'
import { fieldInvalid, type Path } from './body-parse.ts'

/** OpenAI's own cap is 300 entries; each costs one addition a token. */
const MAX_BIASES = 1024

export const logitBiasSchema = z.record(z.string(), z.number().min(-100).max(100))
export type LogitBias = z.infer<typeof logitBiasSchema>

/** Whether the ids lie in the vocabulary is the node's to check. */
export function toLogitBias(given: LogitBias, path: Path): [number, number][] {
  const entries = Object.entries(given)
  if (entries.length > MAX_BIASES) {
    throw fieldInvalid(path, `\`logit_bias\` takes up to ${MAX_BIASES} tokens. Given: ${entries.length}`)
  }
  return entries.map(([id, bias]) => {
    if (!/^\d{1,9}$/.test(id)) {
      throw fieldInvalid([...path, id], '`logit_bias` maps token ids to numbers')
    }
    return [Number(id), bias]
  })
}
