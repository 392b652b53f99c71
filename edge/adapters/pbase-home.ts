/** Asks Predibase whether a caller may read an adapter. Everything there is private: without a token there is no answer. */

import type { AdapterRef } from '../../shared/adapter-ref.ts'
import { askHome, type HomeVerdict, REFUSED } from './home-verdict.ts'

export interface PbaseOptions {
  endpoint: string
  fetch: typeof fetch
  timeoutMs: number
}

/** `repo/version` has a newer and an older address; a `repo` alone (its latest version) only the older. */
export async function askPredibase(
  ref: AdapterRef,
  token: string | undefined,
  options: PbaseOptions,
): Promise<HomeVerdict> {
  const [repo = '', version, ...rest] = ref.id.split('/').map(encodeURIComponent)
  if (token === undefined || rest.length > 0) {
    return REFUSED
  }
  const base = options.endpoint.replace(/\/+$/, '')
  const legacy = `${base}/v1/models/version/name/${repo}`
  const addresses =
    version === undefined ? [legacy] : [`${base}/v2/repos/${repo}/version/${version}`, `${legacy}?version=${version}`]
  for (const address of addresses) {
    if ((await askHome(address, 'GET', token, options)) !== 'refused') {
      return { kind: 'readable', isPublic: false, revision: undefined }
    }
  }
  return REFUSED
}
