/** The edge's own entries in `Server-Timing` (W3C), before the node's. Only on answers: a refusal's time tells nothing. */

import { createMiddleware } from 'hono/factory'
import type { AppContext, AppEnv } from '../app-types.ts'

export const serverTiming = createMiddleware<AppEnv>(async function serverTiming(c, next) {
  await next()
  if (c.res.ok && c.var.timings.length > 0) {
    const ours = c.var.timings.map(([name, ms]) => `${name};dur=${ms.toFixed(1)}`)
    const theirs = c.res.headers.get('server-timing')
    c.header('server-timing', [...ours, ...(theirs === null ? [] : [theirs])].join(', '))
  }
})

/** Measures `work` as `name`. */
export async function timed<T>(c: AppContext, name: string, work: Promise<T>): Promise<T> {
  const startedAt = performance.now()
  try {
    return await work
  } finally {
    c.var.timings.push([name, performance.now() - startedAt])
  }
}
