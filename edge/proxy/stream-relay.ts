/** The body of a streamed reply: relays a node's events and, when the node is lost, goes on with another one's. */

import { RingletError } from '../../shared/errors.ts'
import type { ResumePoint } from '../../shared/stream-resume.ts'
import type { RouteQuery } from '../routing/router.ts'
import type { Connection, Refusal } from './attempt.ts'
import { dataEvent, errorEvent } from './error-event.ts'
import { createEventFramer, type EventFramer, type StreamProgress } from './event-framer.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { encodeDelivered } from './node-request.ts'
import { reachNode } from './reach-node.ts'
import { throwIfEnded } from './request-end.ts'

export interface RelayOptions {
  request: ForwardRequest
  query: RouteQuery
  first: Connection
  deps: ForwardDeps
  /** The client came back to a stream that had broken off on its side: what it has. */
  resumed?: ResumePoint | undefined
  /** Once, at the end: `ok`, `client_gone`, or an error code. */
  onEnd: (outcome: string, counts: { generatedTokens: number; promptTokens: number }) => void
}

/** Breaks without a token between them, after which the request itself is taken for the cause. */
const MAX_BARREN_BREAKS = 3

interface Upstream {
  connection: Connection
  reader: ReadableStreamDefaultReader<Uint8Array>
  framer: EventFramer
}

/** Throws when `first` answers a resumed stream with another adapter than the one that began it. */
export function relayStream({ request, query, first, deps, resumed, onEnd }: RelayOptions): ReadableStream<Uint8Array> {
  const progress: StreamProgress = { delivered: {}, tokens: 0, ...(resumed === undefined ? {} : progressOf(resumed)) }
  if (!noteHeaders(progress, first, request)) {
    first.close('unread')
    throw new RingletError('resume_unknown', 'this stream cannot be resumed: its adapter has changed')
  }
  let upstream: Upstream | undefined = toUpstream(first, progress)
  let ended = false
  /** Since when a write waits for the client to take it. */
  let writingSince: number | undefined
  let barrenBreaks = 0
  let tokensAtBreak = 0

  const finish = (outcome: string): void => {
    if (!ended) {
      ended = true
      clearInterval(idleWatch)
      request.clientSignal.removeEventListener('abort', leave)
      upstream?.connection.close(upstream.framer.ended() ? 'read' : 'unread')
      onEnd(outcome, { generatedTokens: progress.tokens, promptTokens: progress.promptTokens ?? 0 })
    }
  }
  const leave = () => finish('client_gone')
  request.clientSignal.addEventListener('abort', leave)
  const { clientIdleMs } = deps.state.timings
  const idleWatch = setInterval(() => {
    if (writingSince !== undefined && deps.now() - writingSince >= clientIdleMs) {
      leave()
    }
  }, clientIdleMs / 4)

  /** The next bytes for the client; `undefined` after the last, or when nobody waits for them. */
  const next = async (): Promise<Uint8Array[] | undefined> => {
    while (!ended) {
      throwIfEnded(request)
      if (upstream === undefined) {
        upstream = await continueElsewhere()
        continue
      }
      const { reader, framer, connection } = upstream
      const bytes = await readEvents(upstream)
      if (ended || (bytes === 'closed' && framer.ended())) {
        return undefined
      }
      if (bytes !== 'closed' && bytes !== 'broken') {
        connection.alive()
        if (bytes.length > 0) {
          return bytes
        }
        continue
      }
      throwIfEnded(request)
      await reader.cancel().catch(() => undefined) // it is broken already
      connection.close('unread')
      upstream = undefined
      noteBreak(connection)
    }
    return undefined
  }

  const noteBreak = ({ route: { node } }: Connection): void => {
    barrenBreaks = progress.tokens > tokensAtBreak ? 1 : barrenBreaks + 1
    tokensAtBreak = progress.tokens
    deps.state.router.suspect(node.nodeId)
    deps.log('stream_broken', { requestId: request.requestId, nodeId: node.nodeId, tokens: progress.tokens })
    if (barrenBreaks > MAX_BARREN_BREAKS) {
      throw lost(`${barrenBreaks} nodes broke off at token ${progress.tokens}`)
    }
  }

  /** Waits for a node that takes the rest of the stream. */
  const continueElsewhere = async (): Promise<Upstream> => {
    const { timings } = deps.state
    const delivered = encodeDelivered(progress.delivered)
    if (delivered === undefined) {
      throw lost(`${progress.tokens} tokens are more than can be handed to another node`)
    }
    const deadline = deps.now() + timings.patienceMs
    for (;;) {
      const round = await tryNodes(delivered)
      if (typeof round !== 'string') {
        return round
      }
      if (ended || deps.now() >= deadline) {
        throw lost(round)
      }
      await sleep(timings.patienceStepMs)
    }
  }

  /** Each node at most once, up to `attempts` of them; why none took it, if none did. */
  const tryNodes = async (delivered: string): Promise<Upstream | string> => {
    const pick = deps.state.router.reopen(query, first.route.node)
    const tries = { made: 0 }
    let why = 'no other could continue it'
    for (;;) {
      const reached = await reachNode(request, pick, tries, deps, delivered)
      if (reached.kind === 'refused' && !reached.retry) {
        throw new RefusedError(reached.refusal)
      }
      if (reached.kind !== 'connected') {
        return why
      }
      const { connection } = reached
      if (ended) {
        connection.close('unread')
        return 'the client has left'
      }
      if (isEventStream(connection.response) && noteHeaders(progress, connection, request)) {
        const nodeId = connection.route.node.nodeId
        deps.log('stream_continued', { requestId: request.requestId, nodeId, tokens: progress.tokens })
        return toUpstream(connection, progress)
      }
      // The adapter's newest version is another by now; to go on with it would mix two adapters in one answer.
      connection.close('unread')
      why = 'the adapter has changed since the stream began'
    }
  }

  // workerd's own pipe: a third less work an event than a stream of our own, and a write ends when the client took it, so
  // that a slow client holds its node back as it would without the edge.
  const { readable, writable } = new IdentityTransformStream()
  const writer = writable.getWriter()
  writer.closed.catch(leave)

  const write = async (chunk: Uint8Array): Promise<void> => {
    writingSince = deps.now()
    await writer.write(chunk).catch(leave)
    writingSince = undefined
  }

  const relay = async (): Promise<void> => {
    let outcome = 'ok'
    try {
      for (let chunks = await next(); chunks !== undefined; chunks = await next()) {
        for (const chunk of chunks) {
          await write(chunk)
        }
      }
    } catch (error) {
      outcome = outcomeOf(error)
      if (!ended) {
        await write(toEvent(error, request))
      }
    }
    finish(outcome)
    // Fails where the client has left, and with that the stream is as closed as it can be.
    await writer.close().catch(() => undefined)
  }
  void relay()
  return readable
}

/** Before the first token no adapter has answered yet. */
function progressOf({ delivered, digest }: ResumePoint): Pick<StreamProgress, 'delivered' | 'digest'> {
  const holdsTokens = Object.values(delivered).some((tokens) => tokens.length > 0)
  return holdsTokens ? { delivered, digest: digest ?? 'base' } : { delivered }
}

export function isEventStream(response: Response): boolean {
  return response.headers.get('content-type')?.startsWith('text/event-stream') ?? false
}

function toUpstream(connection: Connection, progress: StreamProgress): Upstream {
  const { body } = connection.response
  if (body === null) {
    throw new RingletError('stream_broken', 'the node answered without a body')
  }
  return { connection, reader: body.getReader(), framer: createEventFramer(progress) }
}

/**
 * What a node's headers say of adapter and prompt; one that opened its stream before it knew says it in the stream. False:
 * another adapter answers than the one whose tokens the client has.
 */
function noteHeaders(progress: StreamProgress, { response }: Connection, { selection }: ForwardRequest): boolean {
  const digest = response.headers.get('x-adapter-digest') ?? (selection.kind === 'base' ? 'base' : undefined)
  if (digest !== undefined && (progress.digest ?? digest) !== digest) {
    return false
  }
  const promptTokens = response.headers.get('x-prompt-tokens')
  if (digest !== undefined) {
    progress.digest = digest
  }
  if (promptTokens !== null) {
    progress.promptTokens ??= Number(promptTokens) || 0
  }
  return true
}

/** What one read brings. `broken`: the connection failed, or the node's events don't follow on what the client has. */
async function readEvents({ reader, framer }: Upstream): Promise<Uint8Array[] | 'closed' | 'broken'> {
  try {
    const { done, value } = await reader.read()
    if (!done) {
      return framer.push(value)
    }
  } catch {
    // Whatever broke the read, the answer is the same: another node goes on, unless the end has come already.
    if (!framer.ended()) {
      return 'broken'
    }
  }
  const rest = framer.ended() ? framer.rest() : []
  return rest.length > 0 ? rest : 'closed'
}

function lost(why: string): RingletError {
  return new RingletError('stream_broken', `the node that ran this stream was lost: ${why}`)
}

/** A node's refusal to continue; its body is in the route's shape already. */
class RefusedError extends Error {
  readonly refusal: Refusal

  constructor(refusal: Refusal) {
    super('a node refused to continue the stream')
    this.refusal = refusal
  }
}

function toEvent(error: unknown, request: ForwardRequest): Uint8Array {
  if (error instanceof RefusedError && error.refusal.code !== 'foreign') {
    return dataEvent(JSON.stringify(JSON.parse(error.refusal.body)))
  }
  return errorEvent(error instanceof RingletError ? error : lost('it could not be continued'), request.errorStyle)
}

function outcomeOf(error: unknown): string {
  if (error instanceof RefusedError && error.refusal.code !== 'foreign') {
    return error.refusal.code ?? 'stream_broken'
  }
  return error instanceof RingletError ? error.code : 'stream_broken'
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
