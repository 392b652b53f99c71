/**
 * What every request passes first and every answer last, whatever became of it: its id and trace, the headers that browsers
 * need, its timings, its log line. One middleware: each one more costs a request two promises.
 */

import { createMiddleware } from 'hono/factory'
import type { AppEnv } from '../app-types.ts'
import { crossOrigin, setSecurityHeaders } from './browser-doors.ts'
import { identify } from './request-identity.ts'
import { logRequest } from './request-log.ts'
import { timingHeader } from './server-timing.ts'

export const frontDoor = createMiddleware<AppEnv>(async function frontDoor(c, next) {
  const startedAt = c.env.now()
  identify(c)
  const preflight = await crossOrigin(c, next)
  if (preflight !== undefined) {
    c.res = preflight
  }
  // Set on the answer itself: the context's own way of setting a header copies the whole answer each time.
  const { headers } = c.res
  headers.set('x-request-id', c.get('requestId'))
  setSecurityHeaders(headers)
  const timings = timingHeader(c)
  if (timings !== undefined) {
    headers.set('server-timing', timings)
  }
  logRequest(c, startedAt)
})
