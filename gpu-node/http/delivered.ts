/** The tokens that a client already holds of a stream that goes on here. */

import { z } from 'zod'
import { fromBase64Url } from '../../shared/base64url.ts'
import { RingletError } from '../../shared/errors.ts'
import { ADAPTER_TOKENS_HEADER, DELIVERED_HEADER, type Delivered } from '../../shared/ticket.ts'
import type { AdapterTokens } from '../adapters/adapter-store.ts'

const deliveredSchema = z.record(z.string().regex(/^\d{1,3}$/), z.array(z.int().nonnegative()))
const tokensSchema = z.record(z.string(), z.string())

/** Both headers are the edge's own words; a broken one is the edge's fault and ends the request. */
export function readDelivered(headers: Headers): Delivered {
  return readHeader(headers, DELIVERED_HEADER, deliveredSchema) ?? {}
}

export function readAdapterTokens(headers: Headers): AdapterTokens {
  return readHeader(headers, ADAPTER_TOKENS_HEADER, tokensSchema) ?? {}
}

function readHeader<Schema extends z.ZodType>(
  headers: Headers,
  name: string,
  schema: Schema,
): z.output<Schema> | undefined {
  const text = headers.get(name)
  if (text === null) {
    return undefined
  }
  const bytes = fromBase64Url(text)
  try {
    return schema.parse(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)))
  } catch {
    // Without the cause: it may quote an adapter's token.
    throw new RingletError('ticket_invalid', `the header ${name} is malformed`)
  }
}
