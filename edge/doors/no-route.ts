/** For what no route answers: 405 where the path is known under other methods (RFC 9110 §15.5.6), 404 otherwise. */

import type { Hono } from 'hono'
import { RingletError } from '../../shared/errors.ts'
import type { AppContext, AppEnv } from '../app-types.ts'

export function noRoute(app: Hono<AppEnv>): (c: AppContext) => never {
  let table: { method: string; path: RegExp }[] | undefined
  return function noRoute(c) {
    // Made when first needed: routes are still being registered when this handler is.
    table ??= app.routes
      .filter((route) => route.method !== 'ALL')
      .map((route) => ({ method: route.method, path: toRegExp(route.path) }))
    const methods = [...new Set(table.filter(({ path }) => path.test(c.req.path)).map(({ method }) => method))]
    if (methods.length === 0) {
      throw new RingletError('route_unknown', 'there is no such route')
    }
    c.header('allow', methods.join(', '))
    throw new RingletError('method_not_allowed', `this route answers ${methods.join(', ')}`)
  }
}

/** Of the patterns in use: plain text, `:name` for one segment, `:name{.+}` for the rest. */
function toRegExp(pattern: string): RegExp {
  const source = pattern
    .replaceAll('.', '\\.')
    .replace(/:\w+\{\\\.\+\}/g, '.+')
    .replace(/:\w+/g, '[^/]+')
  return new RegExp(`^${source}$`)
}
