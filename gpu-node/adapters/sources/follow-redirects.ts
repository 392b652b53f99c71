/**
 * A home's redirects: a file may lie elsewhere (a CDN). The token stays with the home, a home with TLS leads nowhere without,
 * and a home outside leads to no address inside: what it says must not make this node ask its own network.
 */

import { isInsideAddress } from './inside-address.ts'

/** Longer chains are loops. */
const MAX_REDIRECTS = 5
const REDIRECTS = new Set([301, 302, 303, 307, 308])

export interface RedirectOptions {
  /** One request; redirects are replies to it. `outsideOnly`: no connection to an address inside may be made. */
  ask(url: URL, init: RequestInit, outsideOnly: boolean): Promise<Response>
  /** Does a host lie inside? */
  isInside(host: string): Promise<boolean>
}

export class RedirectError extends Error {
  override readonly name = 'RedirectError'
}

export function followRedirects({ ask, isInside }: RedirectOptions): typeof fetch {
  return async (input, init = {}) => {
    const home = new URL(input instanceof Request ? input.url : input)
    const headers = new Headers(init.headers)
    let url = home
    let outsideOnly = false
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
      const response = await ask(url, { ...init, headers, redirect: 'manual' }, outsideOnly)
      const location = response.headers.get('location')
      if (!REDIRECTS.has(response.status) || location === null) {
        return response
      }
      await response.body?.cancel()
      const next = readLocation(location, url)
      if (next.origin !== home.origin) {
        headers.delete('authorization')
        outsideOnly ||= !(await isInside(home.hostname))
        checkTarget(home, next, outsideOnly)
      }
      url = next
    }
    throw new RedirectError(`more than ${MAX_REDIRECTS} redirects`)
  }
}

function readLocation(location: string, from: URL): URL {
  try {
    return new URL(location, from)
  } catch {
    // Without the location: it may be signed.
    throw new RedirectError('a redirect to no address')
  }
}

function checkTarget(home: URL, next: URL, outsideOnly: boolean): void {
  if (next.protocol !== 'https:' && (next.protocol !== 'http:' || home.protocol === 'https:')) {
    throw new RedirectError(`a redirect from ${home.protocol} to ${next.protocol}`)
  }
  if (outsideOnly && isInsideAddress(next.hostname)) {
    throw new RedirectError('a redirect from outside to an address inside')
  }
}
