/** Asks a Hugging Face hub whether a caller may read an adapter, and which commit its revision is. */

import { z } from 'zod'
import type { AdapterRef } from '../../shared/adapter-ref.ts'
import { askHome, type HomeVerdict, REFUSED, readJson } from './home-verdict.ts'

export interface HubOptions {
  endpoint: string
  fetch: typeof fetch
  timeoutMs: number
}

const HUB_ID = /^[A-Za-z0-9._-]{1,96}(\/[A-Za-z0-9._-]{1,96})?$/
const COMMIT = /^[0-9a-f]{40}$/

/** A hub that does not say whether a repository is public or gated is taken to mean neither. */
const modelInfo = z.object({
  sha: z.string().regex(COMMIT),
  private: z.boolean().default(true),
  gated: z.union([z.boolean(), z.string()]).default(false),
})

export async function askHub(ref: AdapterRef, token: string | undefined, options: HubOptions): Promise<HomeVerdict> {
  if (!HUB_ID.test(ref.id)) {
    return REFUSED
  }
  const base = options.endpoint.replace(/\/+$/, '')
  const revision = encodeURIComponent(ref.revision ?? 'main')
  const query = 'expand=sha&expand=private&expand=gated'
  const response = await askHome(`${base}/api/models/${ref.id}/revision/${revision}?${query}`, 'GET', token, options)
  if (response === 'refused') {
    return REFUSED
  }
  const info = await readJson(response, modelInfo)
  if (info.gated !== false && !(await mayReadFiles(`${base}/${ref.id}/resolve/${info.sha}`, token, options))) {
    return REFUSED
  }
  return { kind: 'readable', isPublic: !info.private && info.gated === false, revision: info.sha }
}

/** A gated repository shows its name to everyone and its files to those let in. */
async function mayReadFiles(filesUrl: string, token: string | undefined, options: HubOptions): Promise<boolean> {
  return (await askHome(`${filesUrl}/adapter_config.json`, 'HEAD', token, options)) !== 'refused'
}
