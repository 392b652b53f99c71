/** Calls the edge's admin API: one request function with the admin token, and errors that say what the edge said. */

import { fetchFailure } from '../fetch-failure.ts'

export interface AdminClient {
  /** `path` below `/admin`, e.g. `/tenants`. Throws an `AdminError` for any status but 2xx. */
  call<T>(method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, body?: object): Promise<T>
}

export class AdminError extends Error {
  override readonly name = 'AdminError'
  readonly status: number
  readonly code: string

  constructor(status: number, code: string, message: string) {
    super(message)
    this.status = status
    this.code = code
  }
}

export interface AdminClientOptions {
  edgeUrl: string
  adminToken: string
  fetch: typeof fetch
}

export function createAdminClient(options: AdminClientOptions): AdminClient {
  return {
    async call<T>(method: string, path: string, body?: object): Promise<T> {
      const response = await options
        .fetch(new URL(`/admin${path}`, options.edgeUrl), {
          method,
          headers: {
            authorization: `Bearer ${options.adminToken}`,
            ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          },
          body: body === undefined ? null : JSON.stringify(body),
        })
        .catch((cause: unknown) => {
          throw new Error(`the edge ${options.edgeUrl} does not answer: ${fetchFailure(cause)}`, { cause })
        })
      const text = await response.text()
      if (!response.ok) {
        throw toError(response.status, text)
      }
      // The caller names the shape that shared/edge-api.ts promises for this path; CSV and empty replies come as they are.
      return (response.headers.get('content-type')?.includes('json') ? JSON.parse(text) : text) as T
    },
  }
}

function toError(status: number, text: string): AdminError {
  try {
    const body = JSON.parse(text) as { error?: string | { message?: string }; code?: string }
    const message = typeof body.error === 'string' ? body.error : body.error?.message
    // LoRAX's opening words say nothing here.
    const words = (message ?? text).replace(/^Input validation error: /, '')
    return new AdminError(status, body.code ?? 'unknown', words)
  } catch {
    return new AdminError(status, 'unknown', `the edge answered ${status}: ${text.slice(0, 200)}`)
  }
}
