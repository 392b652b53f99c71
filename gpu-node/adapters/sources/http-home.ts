/** HTTP to adapters' homes: time limits, ranges, and which failures are the home's. */

import type { Agent, fetch as UndiciFetch } from 'undici'
import { followRedirects } from './follow-redirects.ts'
import { isInside, lookupOutside } from './inside-address.ts'

export type Fetch = typeof fetch

/** A home that says nothing for this long is treated as gone. */
const SILENCE_MS = 30_000
const CONNECT_MS = 10_000

/** One connection pool a store; undici's own fetch, because its dispatcher takes time limits. Loaded when first used. */
export function createHomeFetch(): { fetch: Fetch; close(): Promise<void> } {
  let opened: Promise<OpenHome> | undefined
  const ask = async (url: URL, init: RequestInit, outsideOnly: boolean) => {
    opened ??= openHome()
    const { fetch, agent, outsideAgent } = await opened
    // Node's types name another undici than the package's; at run time the shapes are one standard.
    const own = { ...init, dispatcher: outsideOnly ? outsideAgent : agent } as Parameters<typeof UndiciFetch>[1]
    return (await fetch(url, own)) as unknown as Response
  }
  const close = async () => {
    const { agent, outsideAgent } = (await opened) ?? {}
    await Promise.all([agent?.close(), outsideAgent?.close()])
  }
  return { fetch: followRedirects({ ask, isInside }), close }
}

interface OpenHome {
  fetch: typeof UndiciFetch
  agent: Agent
  /** Connects to no address inside. */
  outsideAgent: Agent
}

async function openHome(): Promise<OpenHome> {
  const undici = await import('undici')
  const open = (connect: object) =>
    new undici.Agent({
      connect: { timeout: CONNECT_MS, ...connect },
      headersTimeout: SILENCE_MS,
      bodyTimeout: SILENCE_MS,
      connections: 64,
    })
  return { fetch: undici.fetch, agent: open({}), outsideAgent: open({ lookup: lookupOutside }) }
}

/** A reply that a later attempt may improve: too many requests, or the home's own failure. */
export function isTransient(status: number): boolean {
  return status === 408 || status === 429 || status >= 500
}

/** The home answered, but not with the bytes. */
export class HomeReplyError extends Error {
  override readonly name = 'HomeReplyError'
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** Bytes `[start, end)` of a URL. A home that ignores Range (RFC 9110 §14.2 allows it) costs the bytes before `start`. */
export async function* readRange(
  fetch: Fetch,
  url: string,
  headers: Record<string, string>,
  range: { start: number; end: number },
  signal: AbortSignal,
): AsyncIterable<Uint8Array> {
  const { start, end } = range
  if (end <= start) {
    return
  }
  const response = await fetch(url, {
    headers: { ...headers, range: `bytes=${start}-${end - 1}`, 'accept-encoding': 'identity' },
    signal,
  })
  if (response.body === null || (response.status !== 200 && response.status !== 206)) {
    await response.body?.cancel()
    throw new HomeReplyError(response.status, `the home answered ${response.status} to a range`)
  }
  let skip = 0
  if (response.status === 200) {
    skip = start
  } else if (!response.headers.get('content-range')?.startsWith(`bytes ${start}-`)) {
    await response.body.cancel()
    throw new HomeReplyError(206, 'the home answered with another range')
  }
  let left = end - start
  for await (const chunk of response.body) {
    const useful = chunk.subarray(Math.min(skip, chunk.byteLength)).subarray(0, left)
    skip -= Math.min(skip, chunk.byteLength)
    left -= useful.byteLength
    if (useful.byteLength > 0) {
      yield useful
    }
    if (left === 0) {
      return
    }
  }
  throw new HomeReplyError(response.status, `the home's reply ended ${left} bytes early`)
}
