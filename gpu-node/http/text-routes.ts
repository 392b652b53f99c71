/** Routes that need no engine: tokenize, and what this node does not serve. */

import { setImmediate as otherWork } from 'node:timers/promises'
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
    const { tenantId } = await guard(c.req.raw.headers, ['tokenize', 'generate'])
    const { signal } = c.req.raw
    const parsed = parseTokenizeRequest(await readJsonBody(c.req.raw, context.limits.maxBodyBytes))
    const ids = await context.textEncoder.forRequest({ tenantId, signal })(parsed.inputs, parsed.addSpecialTokens)
    const json = await spansJson(context.tokenizer, parsed.inputs, ids, signal)
    return c.body(json, 200, { 'content-type': 'application/json', ...ignoredHeader(parsed.ignored) })
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

/** Tokens described before other requests have their turn; a reply may have hundreds of thousands. */
const SPANS_AT_ONCE = 4_096

async function spansJson(
  tokenizer: Tokenizer,
  inputs: string,
  ids: number[],
  signal: AbortSignal,
): Promise<Buffer<ArrayBuffer>> {
  const describe = spanReader(tokenizer, inputs)
  const parts: Buffer[] = []
  for (let from = 0; from < ids.length; from += SPANS_AT_ONCE) {
    if (from > 0) {
      await otherWork()
      signal.throwIfAborted()
    }
    const spans = ids.slice(from, from + SPANS_AT_ONCE).map(describe)
    parts.push(Buffer.from(`${from === 0 ? '[' : ','}${JSON.stringify(spans).slice(1, -1)}`))
  }
  return Buffer.concat([...parts, Buffer.from(parts.length === 0 ? '[]' : ']')])
}

/** To be given the ids in order. A token that ends inside a character spans that character. */
function spanReader(tokenizer: Tokenizer, inputs: string): (id: number) => TokenSpan {
  const detokenizer = createDetokenizer(tokenizer.stripsLeadingSpace)
  const total = [...inputs].length
  let at = 0
  return (id) => {
    const raw = tokenizer.rawToken(id) ?? ''
    const written = !tokenizer.isSpecial(id) || inputs.includes(raw)
    const text = written ? detokenizer.push(tokenizer.pieceOf(id)) : ''
    const start = Math.min(at, total)
    at += [...text].length
    const partial = written && text === '' && at < total
    return { id, text: raw, start, stop: Math.min(total, partial ? at + 1 : at) }
  }
}
