/** Routes that need no engine: tokenize, and what this node does not serve. */

import type { Hono } from 'hono'
import { parseTokenizeRequest } from '../../shared/api/embed-request.ts'
import { RingletError } from '../../shared/errors.ts'
import { createDetokenizer } from '../text/detokenizer.ts'
import type { Tokenizer } from '../text/tokenizer.ts'
import type { NodeContext } from './node-context.ts'
import { readJsonBody } from './read-body.ts'
import { ignoredHeader } from './reply-headers.ts'
import type { TicketGuard } from './ticket-guard.ts'

export function addTextRoutes(app: Hono, context: NodeContext, guard: TicketGuard): void {
  app.post('/tokenize', async (c) => {
    await guard(c.req.raw.headers, ['tokenize', 'generate'])
    const parsed = parseTokenizeRequest(await readJsonBody(c.req.raw, context.limits.maxBodyBytes))
    const tokens = tokenize(context.tokenizer, parsed.inputs, parsed.addSpecialTokens)
    return c.json(tokens, 200, ignoredHeader(parsed.ignored))
  })
  for (const route of ['/classify', '/classify_batch']) {
    app.post(route, async (c) => {
      await guard(c.req.raw.headers, ['generate', 'embed'])
      throw new RingletError('not_supported', 'the base model is no classifier')
    })
  }
}

interface TokenSpan {
  id: number
  /** The vocabulary's own spelling. */
  text: string
  /** Characters (code points) into `inputs`; tokens that are not in the text have an empty span. */
  start: number
  stop: number
}

/** A token that ends inside a character spans that character. */
function tokenize(tokenizer: Tokenizer, inputs: string, addSpecialTokens: boolean): TokenSpan[] {
  const detokenizer = createDetokenizer(tokenizer.stripsLeadingSpace)
  const total = [...inputs].length
  let at = 0
  return tokenizer.encode(inputs, addSpecialTokens).map((id) => {
    const raw = tokenizer.rawToken(id) ?? ''
    const written = !tokenizer.isSpecial(id) || inputs.includes(raw)
    const text = written ? detokenizer.push(tokenizer.pieceOf(id)) : ''
    const start = Math.min(at, total)
    at += [...text].length
    const partial = written && text === '' && at < total
    return { id, text: raw, start, stop: Math.min(total, partial ? at + 1 : at) }
  })
}
