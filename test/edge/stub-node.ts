/**
 * A node's wire without a model: checks tickets as a node does, and answers what the test says. It remembers every request
 * it served, headers and ticket included.
 */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fromBase64Url } from '../../shared/base64url.ts'
import { RingletError, toLoraxError } from '../../shared/errors.ts'
import type { Heartbeat, ResidentAdapter } from '../../shared/fleet.ts'
import type { SigningKeys } from '../../shared/hmac.ts'
import { ADAPTER_TOKENS_HEADER, TICKET_HEADER, type Ticket, verifyTicket } from '../../shared/ticket.ts'

export interface ServedRequest {
  method: string
  path: string
  headers: IncomingMessage['headers']
  body: string
  ticket: Ticket
  adapterTokens: Record<string, string>
  /** Resolves when the edge closed the connection before the answer was whole. */
  aborted: Promise<void>
}

export type Answer = (request: ServedRequest, response: ServerResponse) => void | Promise<void>

export interface StubNode {
  nodeId: string
  url: string
  served: ServedRequest[]
  /** Served requests but for those about adapters alone. */
  generated: () => ServedRequest[]
  answer: Answer
  heartbeat: (resident?: ResidentAdapter[]) => Heartbeat
  close: () => Promise<void>
}

export async function startStubNode(nodeId: string, ticketKeys: SigningKeys): Promise<StubNode> {
  const served: ServedRequest[] = []
  const server = createServer((request, response) => {
    void handle(request, response).catch((error: unknown) => {
      const known = error instanceof RingletError ? error : new RingletError('internal', String(error))
      response.writeHead(known.kind.status, { 'content-type': 'application/json' })
      response.end(JSON.stringify(toLoraxError(known)))
    })
  })

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const ticketText = request.headers[TICKET_HEADER]
    if (typeof ticketText !== 'string') {
      throw new RingletError('ticket_missing', 'a ticket is needed')
    }
    const ticket = await verifyTicket(ticketText, ticketKeys, nodeId, Date.now())
    if (served.some((earlier) => earlier.ticket.ticketId === ticket.ticketId)) {
      throw new RingletError('ticket_replayed', 'the ticket was used before')
    }
    const tokensHeader = request.headers[ADAPTER_TOKENS_HEADER]
    const chunks: Buffer[] = []
    for await (const chunk of request) {
      chunks.push(chunk as Buffer)
    }
    const aborted = new Promise<void>((resolve) => {
      response.once('close', () => {
        if (!response.writableFinished) {
          resolve()
        }
      })
    })
    const one: ServedRequest = {
      method: request.method ?? '',
      path: request.url ?? '',
      headers: request.headers,
      body: Buffer.concat(chunks).toString(),
      ticket,
      adapterTokens:
        typeof tokensHeader === 'string'
          ? JSON.parse(new TextDecoder().decode(fromBase64Url(tokensHeader) ?? new Uint8Array()))
          : {},
      aborted,
    }
    served.push(one)
    await node.answer(one, response)
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  let residentVersion = 0
  const node: StubNode = {
    nodeId,
    url,
    served,
    generated: () => served.filter((one) => !one.path.startsWith('/adapters')),
    answer: answerText('hello'),
    heartbeat: (resident = []) => ({
      nodeId,
      url,
      region: '',
      baseModel: 'demo/base',
      baseDigest: 'd1',
      dtype: 'f32',
      maxSequences: 8,
      maxPositions: 1024,
      inFlight: 0,
      queued: 0,
      draining: false,
      leaving: false,
      bootId: 'boot',
      resident,
      residentVersion: residentVersion++,
    }),
    close: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return node
}

/** A JSON reply of LoRAX's shape with the counts that a node tells. */
export function answerText(text: string, promptTokens = 3, generatedTokens = 2): Answer {
  return (request, response) => {
    response.writeHead(200, {
      'content-type': 'application/json',
      'x-prompt-tokens': promptTokens,
      'x-generated-tokens': generatedTokens,
      'x-adapter-cache': 'ram',
      'server-timing': 'queue;dur=0.1',
    })
    response.end(JSON.stringify({ generated_text: text, path: request.path }))
  }
}

/** A stream of LoRAX events, one token each; sends the next one whenever `next` resolves, and ends after `count`. */
export function answerStream(count: number, next: () => Promise<void> = async () => {}): Answer {
  return async (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'x-prompt-tokens': 3 })
    response.flushHeaders()
    for (let i = 1; i <= count; i++) {
      await next()
      if (response.destroyed) {
        return
      }
      const last = i === count
      const event = {
        token: { id: 100 + i, text: `t${i}`, logprob: -0.1, special: false, skipped: false },
        generated_text: last ? 'all' : null,
        details: null,
      }
      response.write(`id: 0:${i}:${100 + i}\ndata: ${JSON.stringify(event)}\n\n`)
    }
    response.end()
  }
}
