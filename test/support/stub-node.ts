/**
 * A node without a model, for tests of what stands in front of nodes: real tickets, real heartbeats, the wire of
 * docs/architecture.md, and tokens that depend on adapter, prompt and position alone. Each request can be told to fail.
 */

import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Heartbeats, startHeartbeats } from '../../gpu-node/fleet/heartbeats.ts'
import { createReceivedKeys } from '../../gpu-node/fleet/received-keys.ts'
import { selectionKey } from '../../shared/adapter-ref.ts'
import { fromBase64Url } from '../../shared/base64url.ts'
import { type ErrorCode, RingletError, toLoraxError } from '../../shared/errors.ts'
import { NODE_LOAD_HEADER, type ResidentAdapter } from '../../shared/fleet.ts'
import type { SigningKeys } from '../../shared/hmac.ts'
import {
  type EventId,
  nodeTag,
  parseEventId,
  RESUME_PATH,
  type ResumePoint,
  type ResumeQuestion,
} from '../../shared/stream-resume.ts'
import { DELIVERED_HEADER, type Delivered, TICKET_HEADER, type Ticket, verifyTicket } from '../../shared/ticket.ts'

export type StubBehaviour =
  | { kind: 'answer' }
  | { kind: 'refuse'; code: ErrorCode; retryAfter?: number }
  /** Not a node's answer: a page of something in between, such as a tunnel that lost its origin. */
  | { kind: 'gateway_error'; status: number }
  /** Takes the request and says nothing. */
  | { kind: 'stall' }
  /** Tears the connection after so many events; `midEvent`: with the next one half sent. JSON replies: half sent. */
  | { kind: 'tear'; afterEvents: number; midEvent?: boolean }
  /** Closes in order, but without the end line. */
  | { kind: 'close'; afterEvents: number }
  /** Answers with a pause before each event. */
  | { kind: 'slow'; gapMs: number }
  /** Falls silent after so many events. */
  | { kind: 'silence'; afterEvents: number }

export interface StubNodeOptions {
  nodeId: string
  /** Without them the edge's are asked for. */
  ticketKeys?: SigningKeys
  joinKeys?: SigningKeys
  /** Sends heartbeats there. */
  edgeUrl?: string
  heartbeatMs?: number
  tokens?: number
  /** Pause between events. */
  gapMs?: number
  /** Opens streams before their adapter is loaded: its digest comes as a comment. */
  opensEarly?: () => boolean
  maxSequences?: number
  /** What its replies say is in flight; the truth by default. */
  load?: () => number | undefined
  dtype?: string
  baseDigest?: string
  behave?: (seen: SeenRequest) => StubBehaviour
}

export interface SeenRequest {
  path: string
  ticket: Ticket
  delivered: Delivered | undefined
  body: string
  headers: IncomingMessage['headers']
}

export interface StubNode {
  url: string
  nodeId: string
  seen: SeenRequest[]
  prefetched: string[]
  resident: ResidentAdapter[]
  heartbeats: Heartbeats | undefined
  inFlight: () => number
  /** Resolves when the edge next closes a connection before the answer is whole. */
  nextCancelled: () => Promise<void>
  digest: string
  /** Gone without a word: no farewell, connections torn. */
  kill: () => Promise<void>
}

/** What the stub generates: the same on every stub. */
export function stubTokens(adapterKey: string, prompt: string, choice: number, count: number): number[] {
  let state = 7
  for (const char of `${adapterKey}|${prompt}|${choice}`) {
    state = (state * 31 + char.charCodeAt(0)) % 65_521
  }
  return Array.from({ length: count }, (_, n) => (state * (n + 1) + n * n) % 50_000)
}

export function stubText(ids: readonly number[]): string {
  return ids.map((id) => ` w${id}`).join('')
}

export async function startStubNode(options: StubNodeOptions): Promise<StubNode> {
  const { nodeId, tokens = 12, gapMs = 0, behave = () => ({ kind: 'answer' }) } = options
  const received = options.ticketKeys === undefined ? createReceivedKeys() : undefined
  const ticketKeys = options.ticketKeys ?? received ?? { keys: [] }
  const tickets = new Set<string>()
  let inFlight = 0
  const cancelWaiters: (() => void)[] = []

  const server = createServer({ maxHeaderSize: 256 * 1024 }, (request, response) => {
    inFlight += 1
    response.on('close', () => {
      inFlight -= 1
      if (!response.writableFinished) {
        for (const notify of cancelWaiters.splice(0)) {
          notify()
        }
      }
    })
    serve(request, response).catch((error: unknown) => refuse(response, error))
  })

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const ticket = await verifyTicket(String(request.headers[TICKET_HEADER]), ticketKeys, nodeId, Date.now())
    if (tickets.has(ticket.ticketId)) {
      throw new RingletError('ticket_replayed', 'the ticket was used before')
    }
    tickets.add(ticket.ticketId)
    let body = ''
    for await (const chunk of request.setEncoding('utf8')) {
      body += chunk
    }
    if (request.url === '/adapters/prefetch') {
      const ref = selectionKey(ticket.adapter)
      node.prefetched.push(ref)
      node.resident.push({ ref, digest: ref, tier: 'ram' })
      node.heartbeats?.beat()
      response.writeHead(202).end('{}')
      return
    }
    if (request.url === RESUME_PATH) {
      const { lastEventId } = JSON.parse(body) as ResumeQuestion
      const point = JSON.stringify(resumePoint(ticket, parseEventId(lastEventId)))
      response.writeHead(200, { 'content-type': 'application/json' }).end(point)
      return
    }
    const delivered = decodeDelivered(request.headers[DELIVERED_HEADER])
    const seen = { path: request.url ?? '', ticket, delivered, body, headers: request.headers }
    node.seen.push(seen)
    const behaviour = behave(seen)
    if (behaviour.kind === 'refuse') {
      const { code, retryAfter } = behaviour
      throw new RingletError(
        code,
        `stub says ${code}`,
        retryAfter === undefined ? {} : { retryAfterSeconds: retryAfter },
      )
    }
    if (behaviour.kind === 'gateway_error') {
      response
        .writeHead(behaviour.status, { 'content-type': 'text/html', location: '/login' })
        .end('<h1>origin lost</h1>')
      return
    }
    if (behaviour.kind === 'stall') {
      return
    }
    const { inputs, stream, n = 1 } = JSON.parse(body) as { inputs: string; stream?: boolean; n?: number }
    const opensEarly = stream === true && options.opensEarly?.() === true
    const headers = {
      'x-ringlet-node': nodeId,
      ...(opensEarly ? {} : { 'x-adapter-digest': node.digest }),
      'x-adapter-cache': 'ram',
      'x-prompt-tokens': String(inputs.length),
      [NODE_LOAD_HEADER]: String(options.load?.() ?? inFlight),
    }
    if (stream !== true) {
      const ids = stubTokens(selectionKey(ticket.adapter), inputs, 0, tokens)
      const reply = JSON.stringify({ generated_text: stubText(ids) })
      const length = Buffer.byteLength(reply)
      response.writeHead(200, {
        ...headers,
        'content-type': 'application/json',
        'content-length': length,
        'x-generated-tokens': String(tokens),
      })
      if (behaviour.kind === 'tear') {
        response.write(reply.slice(0, 10), () => response.destroy())
        return
      }
      response.end(reply)
      return
    }
    response.writeHead(200, { ...headers, 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    const pauseMs = behaviour.kind === 'slow' ? behaviour.gapMs : gapMs
    if (opensEarly) {
      response.write(`: started ${node.digest} ${inputs.length}\n\n`)
    }
    await writeEvents(response, streamEvents(ticket, nodeTag(nodeId), inputs, n, tokens, delivered), behaviour, pauseMs)
  }

  /** What a client had of a stream of this node, when it saw this event last. */
  const resumePoint = (ticket: Ticket, last: EventId | undefined): ResumePoint => {
    const seen = node.seen.findLast((one) => one.ticket.requestId === ticket.requestId)
    if (seen === undefined || last === undefined) {
      throw new RingletError('resume_unknown', 'stub remembers no such stream')
    }
    const { inputs, n = 1 } = JSON.parse(seen.body) as { inputs: string; n?: number }
    const tokensOf = (choice: number) =>
      stubTokens(selectionKey(ticket.adapter), inputs, choice, tokens).slice(
        0,
        choice <= last.choice ? last.count : last.count - 1,
      )
    const delivered = Object.fromEntries(Array.from({ length: n }, (_, choice) => [choice, tokensOf(choice)]))
    const { seed, createdAt } = seen.ticket
    return { seed, createdAt, delivered, digest: node.digest }
  }

  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const node: StubNode = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    nodeId,
    seen: [],
    prefetched: [],
    resident: [],
    heartbeats: undefined,
    inFlight: () => inFlight,
    nextCancelled: () => new Promise((resolve) => cancelWaiters.push(resolve)),
    digest: 'stub-digest',
    kill: async () => {
      killed = true
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
  let killed = false
  if (options.edgeUrl !== undefined && options.joinKeys !== undefined) {
    const bootId = crypto.randomUUID()
    node.heartbeats = startHeartbeats({
      edgeUrl: options.edgeUrl,
      joinKeys: options.joinKeys,
      // A killed process sends nothing.
      fetch: (input, init) => (killed ? Promise.reject(new Error('killed')) : fetch(input, init)),
      now: Date.now,
      log: () => undefined,
      ...(options.heartbeatMs === undefined ? {} : { intervalMs: options.heartbeatMs }),
      ...(received === undefined ? {} : { ticketKeys: received }),
      describe: () => ({
        nodeId,
        bootId,
        url: node.url,
        region: 'test',
        baseModel: 'stub',
        baseDigest: options.baseDigest ?? 'base-1',
        dtype: options.dtype ?? 'f32',
        maxSequences: options.maxSequences ?? 64,
        maxPositions: 4096,
        inFlight,
        queued: 0,
        resident: node.resident,
      }),
    })
  }
  return node
}

/** Events as the node's HTTP side writes them: roles and a usage report without tokens, one event a token, `[DONE]`. */
function* streamEvents(
  ticket: Ticket,
  tag: string,
  prompt: string,
  choices: number,
  count: number,
  delivered: Delivered | undefined,
) {
  const key = selectionKey(ticket.adapter)
  for (let choice = 0; choice < choices; choice++) {
    if (delivered?.[choice] === undefined) {
      yield `data: {"choice":${choice},"role":"assistant"}\n\n`
    }
  }
  for (let n = 0; n < count; n++) {
    for (let choice = 0; choice < choices; choice++) {
      const ids = stubTokens(key, prompt, choice, count)
      if (n >= (delivered?.[choice]?.length ?? 0)) {
        const text = stubText(ids.slice(n, n + 1))
        yield `id: ${choice}:${n + 1}:${ids[n]}:${tag}\ndata: {"choice":${choice},"text":"${text}"}\n\n`
      }
    }
  }
  yield `data: {"usage":${count * choices}}\n\n`
  yield 'data: [DONE]\n\n'
  yield ': end\n\n'
}

async function writeEvents(
  response: ServerResponse,
  events: Iterable<string>,
  behaviour: StubBehaviour,
  gapMs: number,
): Promise<void> {
  let written = 0
  for (const event of events) {
    if ('afterEvents' in behaviour && written === behaviour.afterEvents) {
      if (behaviour.kind === 'silence') {
        return
      }
      if (behaviour.kind === 'close') {
        response.end()
        return
      }
      if (behaviour.kind === 'tear') {
        const half = behaviour.midEvent === true ? event.slice(0, event.length / 2) : ':\n\n'
        response.write(half, () => response.destroy())
        return
      }
    }
    if (response.destroyed) {
      return
    }
    if (gapMs > 0) {
      await sleep(gapMs)
    }
    response.write(event)
    written += 1
  }
  if (behaviour.kind === 'tear') {
    response.write('', () => response.destroy())
    return
  }
  response.end()
}

function refuse(response: ServerResponse, error: unknown): void {
  const shown = error instanceof RingletError ? error : new RingletError('internal', String(error))
  const retryAfter = shown.retryAfterSeconds === undefined ? {} : { 'retry-after': String(shown.retryAfterSeconds) }
  response.writeHead(shown.kind.status, { 'content-type': 'application/json', ...retryAfter })
  response.end(JSON.stringify(toLoraxError(shown)))
}

function decodeDelivered(header: string | string[] | undefined): Delivered | undefined {
  const bytes = typeof header === 'string' ? fromBase64Url(header) : undefined
  return bytes === undefined ? undefined : (JSON.parse(new TextDecoder().decode(bytes)) as Delivered)
}
