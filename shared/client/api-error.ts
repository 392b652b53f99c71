/** What a Ringlet endpoint refused, as the client throws it. */

export class RingletApiError extends Error {
  override readonly name = 'RingletApiError'
  /** HTTP status; 200 for an error event in a stream that had begun. */
  readonly status: number
  /** Ringlet's code, e.g. `adapter_not_found`; decide by it, never by the message. */
  readonly code: string | undefined
  /** Path of the field at fault. */
  readonly param: string | undefined
  readonly requestId: string | undefined
  readonly retryAfterSeconds: number | undefined

  constructor(message: string, fields: ApiErrorFields) {
    super(message)
    this.status = fields.status
    this.code = fields.code
    this.param = fields.param
    this.requestId = fields.requestId
    this.retryAfterSeconds = fields.retryAfterSeconds
  }
}

interface ApiErrorFields {
  status: number
  code?: string | undefined
  param?: string | undefined
  requestId?: string | undefined
  retryAfterSeconds?: number | undefined
}

export async function readApiError(response: Response): Promise<RingletApiError> {
  const retryAfter = Number(response.headers.get('retry-after') ?? Number.NaN)
  return toApiError(await response.text(), {
    status: response.status,
    requestId: response.headers.get('x-request-id') ?? undefined,
    retryAfterSeconds: Number.isFinite(retryAfter) ? retryAfter : undefined,
  })
}

/** Reads LoRAX's body (`error`, `code`, `param`) and OpenAI's (`error: {message, code, param}`). */
export function toApiError(text: string, fields: ApiErrorFields): RingletApiError {
  const body = parseObject(text)
  const inner = isObject(body?.error) ? body.error : body
  const message = typeof body?.error === 'string' ? body.error : textOf(inner?.message)
  return new RingletApiError(message ?? `the endpoint answered ${fields.status}`, {
    ...fields,
    code: textOf(inner?.code),
    param: textOf(inner?.param),
  })
}

/** Is this event's data an error instead of a token or chunk? */
export function isErrorData(value: unknown): boolean {
  return isObject(value) && value.error !== undefined && value.error !== null
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch {
    // A proxy in between answers in its own words.
    return undefined
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
