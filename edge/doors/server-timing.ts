/** The edge's own entries in `Server-Timing` (W3C), before the node's. Only on answers: a refusal's time tells nothing. */

import type { AppContext } from '../app-types.ts'

/** `undefined`: nothing to tell. */
export function timingHeader(c: AppContext): string | undefined {
  const timings = c.get('timings')
  if (timings.length === 0 || !c.res.ok) {
    return undefined
  }
  let header = ''
  for (const [name, ms] of timings) {
    header += `${header === '' ? '' : ', '}${name};dur=${ms.toFixed(1)}`
  }
  const theirs = c.res.headers.get('server-timing')
  return theirs === null ? header : `${header}, ${theirs}`
}

/** Measures `work` as `name`. */
export async function timed<T>(c: AppContext, name: string, work: Promise<T>): Promise<T> {
  const startedAt = performance.now()
  try {
    return await work
  } finally {
    c.get('timings').push([name, performance.now() - startedAt])
  }
}
