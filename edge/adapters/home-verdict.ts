/** One question to an adapter's home: yes with a body, no, or nobody there. What the homes have in common. */

import type { z } from 'zod'
import { RingletError } from '../../shared/errors.ts'

export type HomeVerdict =
  | {
      kind: 'readable'
      /** Anyone may read it, so the verdict holds for other callers too. */
      isPublic: boolean
      /** The exact revision, where the home has such. */
      revision: string | undefined
    }
  | { kind: 'refused' }

export const REFUSED: HomeVerdict = { kind: 'refused' }

export interface AskOptions {
  fetch: typeof fetch
  timeoutMs: number
}

/** More than any home says about one adapter. */
const MAX_ANSWER_CHARACTERS = 1 << 20
/** A renamed repository answers with a redirect. */
const MAX_REDIRECTS = 3

/** `refused` for every 4xx but 408 and 429: a home may hide what exists behind any of them. */
export async function askHome(
  address: string,
  method: 'GET' | 'HEAD',
  token: string | undefined,
  options: AskOptions,
): Promise<Response | 'refused'> {
  let url = new URL(address)
  const home = url.origin
  for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
    const response = await send(url, method, token, options)
    if (response.ok) {
      return response
    }
    await response.body?.cancel()
    const location = response.headers.get('location')
    if (response.status >= 300 && response.status < 400 && location !== null) {
      url = redirectedTo(location, url)
      if (url.origin !== home) {
        // File contents live elsewhere (a CDN): being sent there is the home's yes. The token never follows.
        return method === 'HEAD' ? response : unreachable('it redirects to another host')
      }
      continue
    }
    if (response.status >= 400 && response.status < 500 && response.status !== 408 && response.status !== 429) {
      return 'refused'
    }
    return unreachable(`it answered ${response.status}`)
  }
  return unreachable('it redirects too often')
}

function redirectedTo(location: string, from: URL): URL {
  try {
    return new URL(location, from)
  } catch (cause) {
    return unreachable('it redirects to no address', cause)
  }
}

export async function readJson<Schema extends z.ZodType>(
  response: Response,
  schema: Schema,
): Promise<z.output<Schema>> {
  let text: string
  try {
    text = await response.text()
  } catch (cause) {
    return unreachable('its answer breaks off', cause)
  }
  if (text.length > MAX_ANSWER_CHARACTERS) {
    return unreachable('its answer is too long')
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return unreachable('its answer is no JSON')
  }
  const parsed = schema.safeParse(json)
  return parsed.success ? parsed.data : unreachable('its answer is not of the known form')
}

async function send(
  url: URL,
  method: 'GET' | 'HEAD',
  token: string | undefined,
  options: AskOptions,
): Promise<Response> {
  const headers = { accept: 'application/json', ...(token === undefined ? {} : { authorization: `Bearer ${token}` }) }
  const signal = AbortSignal.timeout(options.timeoutMs)
  try {
    return await options.fetch(url, { method, headers, redirect: 'manual', signal })
  } catch (error) {
    return unreachable('it does not answer', error)
  }
}

function unreachable(why: string, cause?: unknown): never {
  throw new RingletError('adapter_home_unreachable', `the adapter's home could not be asked: ${why}`, {
    retryAfterSeconds: 5,
    ...(cause === undefined ? {} : { cause }),
  })
}
