/**
 * Every refusal that Ringlet gives: its code, HTTP status, and whether another node may be tried.
 * The edge decides on retries by code, never by text.
 */

interface ErrorKind {
  status: number
  /** May the edge send the same request to another node (nothing was delivered yet)? */
  retryElsewhere: boolean
  /** `error_type` on LoRAX routes (lorax-client maps these to its exception classes). */
  loraxType: string
  /** `error.type` on `/v1`, as OpenAI names it. */
  openAiType: string
}

const kind = (status: number, loraxType: string, openAiType: string, retryElsewhere = false): ErrorKind => ({
  status,
  retryElsewhere,
  loraxType,
  openAiType,
})

export const ERROR_KINDS = {
  // who are you
  token_missing: kind(401, 'authentication', 'authentication_error'),
  token_invalid: kind(401, 'authentication', 'authentication_error'),
  token_revoked: kind(401, 'authentication', 'authentication_error'),
  scope_denied: kind(403, 'permission', 'permission_error'),
  // A ticket is between edge and node: another node may have the newer key, or the better clock; no client hears of it.
  ticket_missing: kind(401, 'ticket', 'authentication_error', true),
  ticket_invalid: kind(401, 'ticket', 'authentication_error', true),
  ticket_expired: kind(401, 'ticket', 'authentication_error', true),
  ticket_replayed: kind(401, 'ticket', 'authentication_error', true),
  ticket_wrong_node: kind(401, 'ticket', 'authentication_error', true),
  // is it well formed
  body_malformed: kind(400, 'validation', 'invalid_request_error'),
  body_too_large: kind(413, 'validation', 'invalid_request_error'),
  content_type_unsupported: kind(415, 'validation', 'invalid_request_error'),
  field_invalid: kind(422, 'validation', 'invalid_request_error'),
  field_unknown: kind(422, 'validation', 'invalid_request_error'),
  prompt_too_long: kind(422, 'validation', 'invalid_request_error'),
  template_failed: kind(422, 'template_error', 'invalid_request_error'),
  tool_invalid: kind(422, 'tool_error', 'invalid_request_error'),
  grammar_invalid: kind(422, 'validation', 'invalid_request_error'),
  route_unknown: kind(404, 'not_found', 'invalid_request_error'),
  method_not_allowed: kind(405, 'validation', 'invalid_request_error'),
  not_supported: kind(501, 'not_supported', 'invalid_request_error'),
  // which adapter. `adapter_not_found` also answers for "exists, but not for you": the two must look the same.
  adapter_not_found: kind(404, 'adapter_not_found', 'invalid_request_error'),
  model_not_found: kind(404, 'model_not_found', 'invalid_request_error'),
  adapter_refused: kind(422, 'adapter_refused', 'invalid_request_error'),
  adapter_too_large: kind(413, 'adapter_refused', 'invalid_request_error'),
  adapter_not_ready: kind(409, 'adapter_not_ready', 'invalid_request_error'),
  adapter_home_unreachable: kind(503, 'adapter_home_unreachable', 'server_error'),
  adapter_capacity: kind(503, 'overloaded', 'server_error', true),
  merge_invalid: kind(422, 'validation', 'invalid_request_error'),
  // limits
  rate_limited: kind(429, 'overloaded', 'rate_limit_error'),
  budget_exhausted: kind(429, 'overloaded', 'insufficient_quota'),
  queue_full: kind(429, 'overloaded', 'rate_limit_error', true),
  deadline_exceeded: kind(504, 'generation', 'server_error'),
  // the fleet
  no_node: kind(503, 'overloaded', 'server_error'),
  node_unreachable: kind(503, 'overloaded', 'server_error', true),
  node_draining: kind(503, 'overloaded', 'server_error', true),
  engine_failed: kind(500, 'generation', 'server_error', true),
  stream_broken: kind(502, 'incomplete_generation', 'server_error', true),
  // Another node may have served the stream that is to be resumed.
  resume_unknown: kind(404, 'not_found', 'invalid_request_error', true),
  conflict: kind(409, 'validation', 'invalid_request_error'),
  internal: kind(500, 'generation', 'server_error'),
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof ERROR_KINDS

/** What a refusal may add to its code and message. `param` is the field's path in the body, e.g. `parameters.top_p`. */
export interface ErrorExtras {
  param?: string
  retryAfterSeconds?: number
  cause?: unknown
}

/** The one error that may cross a boundary. Its message is for the caller: it names the value and the limit, never a secret. */
export class RingletError extends Error {
  override readonly name = 'RingletError'
  readonly code: ErrorCode
  readonly param: string | undefined
  readonly retryAfterSeconds: number | undefined

  constructor(code: ErrorCode, message: string, extras: ErrorExtras = {}) {
    super(message, extras.cause === undefined ? undefined : { cause: extras.cause })
    this.code = code
    this.param = extras.param
    this.retryAfterSeconds = extras.retryAfterSeconds
  }

  get kind(): ErrorKind {
    return ERROR_KINDS[this.code]
  }
}

/** LoRAX's error body (`error`, `error_type`), with Ringlet's code beside it. */
export interface LoraxErrorBody {
  error: string
  error_type: string
  code: ErrorCode
  param?: string
}

export function toLoraxError(error: RingletError): LoraxErrorBody {
  const text = error.kind.loraxType === 'validation' ? `Input validation error: ${error.message}` : error.message
  return {
    error: text,
    error_type: error.kind.loraxType,
    code: error.code,
    ...(error.param === undefined ? {} : { param: error.param }),
  }
}

/** Clients made for OpenAI's API look for its own code when a prompt is too long, to shorten it. */
const OPENAI_CODES = { prompt_too_long: 'context_length_exceeded' } as const satisfies Partial<
  Record<ErrorCode, string>
>

/** OpenAI's error body. */
export interface OpenAiErrorBody {
  error: { message: string; type: string; code: string; param: string | null }
}

function openAiCode(code: ErrorCode): string {
  const codes: Partial<Record<ErrorCode, string>> = OPENAI_CODES
  return codes[code] ?? code
}

/** The code in an error body of either API, if it is one of ours. */
export function readErrorCode(text: unknown): ErrorCode | undefined {
  if (typeof text !== 'string') {
    return undefined
  }
  const own = Object.entries(OPENAI_CODES).find(([, theirs]) => theirs === text)?.[0] ?? text
  return Object.hasOwn(ERROR_KINDS, own) ? (own as ErrorCode) : undefined
}

/** OpenAI's API knows no 422: what is wrong with a request is a 400 there, and its clients' classes go by the status. */
export function statusOf({ kind: { status } }: RingletError, api: 'lorax' | 'openai'): number {
  return api === 'openai' && status === 422 ? 400 : status
}

export function toOpenAiError(error: RingletError): OpenAiErrorBody {
  return {
    error: {
      message: error.message,
      type: error.kind.openAiType,
      code: openAiCode(error.code),
      param: error.param ?? null,
    },
  }
}
