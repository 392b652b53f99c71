/** One door for all generating routes: the body of a route, parsed by the rules of its API. */

import type { GenerateRoute } from './generate-request.ts'
import { DEFAULT_LORAX_LIMITS, type ParsedLorax, parseLoraxRequest } from './lorax-request.ts'
import { type ParsedOpenAi, parseChatRequest, parseCompletionRequest } from './openai-request.ts'

export type ParsedGenerate = ParsedLorax | ParsedOpenAi

export function parseGenerateBody(body: unknown, route: GenerateRoute, limits = DEFAULT_LORAX_LIMITS): ParsedGenerate {
  switch (route) {
    case '/v1/chat/completions':
      return parseChatRequest(body)
    case '/v1/completions':
      return parseCompletionRequest(body)
    default:
      return parseLoraxRequest(body, route, limits)
  }
}
