/** A list of token ids, as a prompt or an input may be given. Which ids exist is the node's to check. */

import { z } from 'zod'

/** The nodes keep them in 32 bits. */
const MAX_TOKEN_ID = 2 ** 31 - 1

export function isTokenIds(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((id) => Number.isInteger(id) && id >= 0 && id <= MAX_TOKEN_ID)
  )
}

/** One check for the whole list, which may have millions: a schema of arrays takes a microsecond for each. */
export const tokenIdsSchema = z.custom<number[]>(isTokenIds, 'expected token ids').meta({
  type: 'array',
  minItems: 1,
  items: { type: 'integer', minimum: 0, maximum: MAX_TOKEN_ID },
})
