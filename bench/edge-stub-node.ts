// A node that answers at once, in its own process: what the edge and LiteLLM stand in front of in `edge-latency.ts`.

import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { startHeartbeats } from '../gpu-node/fleet/heartbeats.ts'

/** Parent to child, once. */
export interface StubNodeOrder {
  edgeUrl: string
  joinKeys: { id: string; secret: string }[]
  baseModel: string
  /** Token events of a streamed reply. */
  streamTokens: number
}

const MESSAGE = { role: 'assistant', content: 'A short answer from a stub node.' }
const REPLY = JSON.stringify({
  id: 'chatcmpl-stub',
  object: 'chat.completion',
  created: 1_700_000_000,
  model: 'stub',
  choices: [{ index: 0, message: MESSAGE, finish_reason: 'stop' }],
  usage: { prompt_tokens: 12, completion_tokens: 7, total_tokens: 19 },
})

const chunk = (delta: object, finish: string | null = null) =>
  JSON.stringify({
    id: 'chatcmpl-stub',
    object: 'chat.completion.chunk',
    created: 1_700_000_000,
    model: 'stub',
    choices: [{ index: 0, delta, finish_reason: finish }],
  })

/** The events of a stream; written one by one, each in the next turn of the event loop, as an engine's steps bring them. */
function streamEvents(tokens: number): string[] {
  return [
    `id: 0:0:\ndata: ${chunk({ role: 'assistant', content: '' })}\n\n`,
    ...Array.from({ length: tokens }, (_, n) => `id: 0:${n + 1}:${n}\ndata: ${chunk({ content: ` t${n}` })}\n\n`),
    `data: ${chunk({}, 'stop')}\n\n`,
    'data: [DONE]\n\n',
    ': end\n\n',
  ]
}

function writeStream(response: ServerResponse, events: readonly string[], at = 0): void {
  const event = events[at]
  if (event === undefined) {
    response.end()
  } else if (!response.destroyed) {
    response.write(event)
    setImmediate(writeStream, response, events, at + 1)
  }
}

process.once('message', (order: StubNodeOrder) => {
  const events = streamEvents(order.streamTokens)
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (text: string) => {
      body += text
    })
    request.on('end', () => {
      if (body.includes('"stream":true') || body.includes('"stream": true')) {
        response.writeHead(200, { 'content-type': 'text/event-stream', 'x-prompt-tokens': '12' })
        writeStream(response, events)
      } else {
        response.writeHead(200, {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(REPLY),
          'x-prompt-tokens': '12',
          'x-generated-tokens': '7',
        })
        response.end(REPLY)
      }
    })
  })
  server.keepAliveTimeout = 60_000
  server.listen(0, '127.0.0.1', async () => {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    const heartbeats = startHeartbeats({
      edgeUrl: order.edgeUrl,
      joinKeys: { keys: order.joinKeys },
      fetch,
      now: Date.now,
      log: () => undefined,
      describe: () => ({
        nodeId: 'stub',
        bootId: 'stub',
        url,
        baseModel: order.baseModel,
        baseDigest: 'stub',
        dtype: 'f32',
        maxSequences: 1_024,
        maxPositions: 4_096,
        inFlight: 0,
        queued: 0,
        resident: [{ ref: 'local:demo', digest: 'demo', tier: 'engine' }],
      }),
    })
    await heartbeats.joined
    process.send?.({ url })
  })
})

// The bench that forked this is gone.
process.once('disconnect', () => process.exit())
