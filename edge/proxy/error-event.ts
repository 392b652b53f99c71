/** An error as the last event of a stream, in the shape of the route. */

import { type RingletError, toLoraxError, toOpenAiError } from '../../shared/errors.ts'
import type { ErrorStyle } from './forward-types.ts'

export function errorEvent(error: RingletError, style: ErrorStyle): Uint8Array {
  return dataEvent(JSON.stringify(style === 'openai' ? toOpenAiError(error) : toLoraxError(error)))
}

/** `json` on one line; line breaks in it would end the event's field. */
export function dataEvent(json: string): Uint8Array {
  return new TextEncoder().encode(`data: ${json}\n\n`)
}
