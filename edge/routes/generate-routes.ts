/** The routes that a node answers: generation, embeddings, tokenization. Their bodies are parsed here and forwarded as they came. */

import { Hono } from 'hono'
import { parseEmbedRequest, parseTokenizeRequest } from '../../shared/api/embed-request.ts'
import { parseGenerateBody } from '../../shared/api/generate-body.ts'
import { GENERATE_ROUTES, type GenerateRoute, MAX_SEQUENCES_PER_REQUEST } from '../../shared/api/generate-request.ts'
import type { LoraxLimits } from '../../shared/api/lorax-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { AppContext, AppEnv } from '../app-types.ts'
import { readJson } from '../doors/json-body.ts'
import { generateSize, promptSize } from './request-size.ts'
import { serve } from './serve.ts'

/** What an operator may allow at most; the nodes, which hold the true limits, refuse what is above theirs. */
const WIDEST_LIMITS: LoraxLimits = { maxBestOf: MAX_SEQUENCES_PER_REQUEST, maxStopSequences: 1024 }

const EMBED_ROUTES = ['/embed', '/v1/embeddings'] as const

export function generateRoutes(): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  for (const route of GENERATE_ROUTES) {
    app.post(route, (c) => generate(c, route))
  }
  for (const route of EMBED_ROUTES) {
    app.post(route, async (c) => {
      const { text, json } = await readJson(c)
      const { adapter, inputs } = parseEmbedRequest(json, route)
      const size = (maxPositions: number) => promptSize(text, inputs.length * maxPositions)
      return serve(c, { action: 'embed', path: pathOf(c), bodyText: text, stream: false, adapter, size })
    })
  }
  app.post('/tokenize', async (c) => {
    const { text, json } = await readJson(c)
    parseTokenizeRequest(json)
    const size = () => promptSize(text, text.length)
    return serve(c, { action: 'tokenize', path: pathOf(c), bodyText: text, stream: false, adapter: {}, size })
  })
  for (const route of ['/classify', '/classify_batch']) {
    app.post(route, () => {
      throw new RingletError('not_supported', 'token classification is not served: the base is a causal model')
    })
  }
  return app
}

async function generate(c: AppContext, route: GenerateRoute): Promise<Response> {
  const { text, json } = await readJson(c)
  const { adapter, request, stream } = parseGenerateBody(json, route, WIDEST_LIMITS)
  const size = (maxPositions: number) => generateSize(request, text, maxPositions)
  return serve(c, { action: 'generate', path: pathOf(c), bodyText: text, stream, adapter, size })
}

function pathOf(c: AppContext): string {
  const { url, path } = c.req
  const query = url.indexOf('?')
  return query < 0 ? path : path + url.slice(query)
}
