/** A request's JSON body, with a cap that holds while it arrives. */

import { RingletError } from '../../shared/errors.ts'

export async function readJsonBody(request: Request, maxBytes: number): Promise<unknown> {
  const type = request.headers.get('content-type') ?? ''
  if (!/^application\/(?:[\w.+-]*\+)?json\b/i.test(type)) {
    throw new RingletError('content_type_unsupported', 'the body must be sent as content-type: application/json')
  }
  const text = await readText(request, maxBytes)
  try {
    return JSON.parse(text)
  } catch (cause) {
    // The parser's own message may quote the prompt.
    throw new RingletError('body_malformed', 'the body is not JSON', { cause })
  }
}

async function readText(request: Request, maxBytes: number): Promise<string> {
  const tooLarge = () => new RingletError('body_too_large', `the body is larger than ${maxBytes} bytes`)
  if (Number(request.headers.get('content-length') ?? 0) > maxBytes) {
    throw tooLarge()
  }
  const chunks: Uint8Array[] = []
  let length = 0
  for await (const chunk of request.body ?? []) {
    length += chunk.length
    if (length > maxBytes) {
      throw tooLarge()
    }
    chunks.push(chunk)
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks))
  } catch (cause) {
    throw new RingletError('body_malformed', 'the body is not UTF-8', { cause })
  }
}
