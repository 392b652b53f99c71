/** What the node's parts refuse without knowing the request's body: the same in the words of the route's API, with the field. */

import type { AdapterSelection } from '../../shared/adapter-ref.ts'
import { adapterField, fieldIn } from '../../shared/api/adapter-fields.ts'
import type { ApiStyle } from '../../shared/api/generate-request.ts'
import { type ErrorCode, RingletError } from '../../shared/errors.ts'

const OF_ADAPTER: readonly ErrorCode[] = [
  'adapter_not_found',
  'adapter_refused',
  'adapter_too_large',
  'adapter_not_ready',
  'merge_invalid',
]

/** Anything else passes as it is. */
export function ofAdapter(error: unknown, api: ApiStyle, selection: AdapterSelection): unknown {
  if (!(error instanceof RingletError)) {
    return error
  }
  if (error.param === 'api_token') {
    return inField(error, fieldIn(api, 'api_token'))
  }
  if (!OF_ADAPTER.includes(error.code) && error.param !== 'adapter_id') {
    return error
  }
  const param = selection.kind === 'merge' ? fieldIn(api, 'merged_adapters') : adapterField(api)
  // To OpenAI's clients an adapter is a model.
  return inField(error, param, api === 'openai' && error.code === 'adapter_not_found' ? 'model_not_found' : error.code)
}

export function ofFormat(error: unknown, api: ApiStyle): unknown {
  return error instanceof RingletError && error.code === 'grammar_invalid'
    ? inField(error, fieldIn(api, 'response_format'))
    : error
}

function inField(error: RingletError, param: string, code: ErrorCode = error.code): RingletError {
  const { message, retryAfterSeconds } = error
  return new RingletError(code, message, {
    param,
    cause: error,
    ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }),
  })
}
