/** Errors as replies: the API's shape, the code's status, Retry-After. What is not a RingletError shows no detail. */

import type { ApiStyle } from '../../shared/api/generate-request.ts'
import { RingletError, statusOf, toLoraxError, toOpenAiError } from '../../shared/errors.ts'

/** `/v1/...` speaks OpenAI's, all else LoRAX's. */
export function apiOf(path: string): ApiStyle {
  return path === '/v1' || path.startsWith('/v1/') ? 'openai' : 'lorax'
}

export function toRingletError(thrown: unknown): RingletError {
  if (thrown instanceof RingletError) {
    return thrown
  }
  return new RingletError('internal', 'the node failed on this request', { cause: thrown })
}

export function errorBody(error: RingletError, api: ApiStyle): object {
  return api === 'openai' ? toOpenAiError(error) : toLoraxError(error)
}

export function errorResponse(error: RingletError, api: ApiStyle): Response {
  return Response.json(errorBody(error, api), {
    status: statusOf(error, api),
    headers: {
      ...(error.retryAfterSeconds === undefined ? {} : { 'retry-after': String(Math.ceil(error.retryAfterSeconds)) }),
    },
  })
}
