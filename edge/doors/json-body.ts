/** A body from outside: capped in bytes, JSON by its content type, parsed once. */

import { bodyLimit } from 'hono/body-limit'
import { createMiddleware } from 'hono/factory'
import type { z } from 'zod'
import { parseBody } from '../../shared/api/body-parse.ts'
import { RingletError } from '../../shared/errors.ts'
import type { AppContext, AppEnv } from '../app-types.ts'

/** Counts what arrives; a declared length above the cap is refused unread. */
export const bodyCap = createMiddleware<AppEnv>(async function bodyCap(c, next) {
  const maxSize = c.env.config.RINGLET_MAX_BODY_BYTES
  const declared = c.req.header('content-length')
  if (declared !== undefined && c.req.header('transfer-encoding') === undefined && Number(declared) <= maxSize) {
    return next()
  }
  const limit = bodyLimit({
    maxSize,
    onError: () => {
      throw new RingletError('body_too_large', `a body has at most ${maxSize} bytes`)
    },
  })
  return limit(c, next)
})

export interface JsonBody {
  text: string
  json: unknown
}

const JSON_TYPE = /^application\/([a-z0-9.+-]+\+)?json\s*(;|$)/i

export async function readJson(c: AppContext): Promise<JsonBody> {
  const type = c.req.header('content-type') ?? ''
  if (!JSON_TYPE.test(type)) {
    throw new RingletError('content_type_unsupported', 'the body must be JSON: content-type: application/json')
  }
  const coding = c.req.header('content-encoding') ?? 'identity'
  if (coding.toLowerCase() !== 'identity') {
    // RFC 9110 §15.5.16: with the codings that would do.
    c.header('accept-encoding', 'identity')
    throw new RingletError('content_type_unsupported', 'the body must not be compressed')
  }
  const text = await c.req.text()
  try {
    return { text, json: JSON.parse(text) }
  } catch {
    // The parser's own message quotes the body.
    throw new RingletError('body_malformed', 'the body is not valid JSON')
  }
}

/** For the admin routes, whose bodies are parsed by one schema. An empty body counts as `{}`. */
export async function readBody<Schema extends z.ZodType>(c: AppContext, schema: Schema): Promise<z.output<Schema>> {
  const isEmpty = c.req.raw.body === null || c.req.header('content-length') === '0'
  return parseBody(schema, isEmpty ? {} : (await readJson(c)).json)
}
