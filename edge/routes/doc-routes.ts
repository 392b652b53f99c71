/** The OpenAPI document (with a token, like every route), and a static page to try the routes by hand. */

import { Hono } from 'hono'
import { openApiDocument } from '../../shared/api/openapi.ts'
import type { AppEnv } from '../app-types.ts'

/** LoRAX's path for it. */
const DOCUMENT_PATH = '/api-doc/openapi.json'
/** Of the document: raised when routes or fields change. */
const VERSION = '1.0.0'

export function docRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.get(DOCUMENT_PATH, (c) => c.json(openApiDocument(new URL(c.req.url).origin, VERSION)))
  return app
}

/** Open to anyone: it holds nothing but its own text, and asks for a token before it can do anything. */
export function tryPageRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  let policy: string | undefined
  app.get('/docs', async (c) => {
    const { tryPage } = c.env
    policy ??= await pagePolicy(tryPage)
    c.header('content-security-policy', policy)
    return c.html(tryPage)
  })
  return app
}

/** Only the page's own script runs, and it talks to this endpoint alone. */
async function pagePolicy(page: string): Promise<string> {
  const script = /<script>([\s\S]*)<\/script>/.exec(page)?.[1] ?? ''
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(script))
  const hash = btoa(String.fromCharCode(...new Uint8Array(digest)))
  return [
    "default-src 'none'",
    `script-src 'sha256-${hash}'`,
    "style-src 'unsafe-inline'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; ')
}
