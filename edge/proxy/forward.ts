/** From an authorised request to the client's response: reach a node, then relay its stream or hand over its reply. */

import { RingletError } from '../../shared/errors.ts'
import type { ResumePoint } from '../../shared/stream-resume.ts'
import { type Connection, isTimeout, type Refusal } from './attempt.ts'
import type { Forward, ForwardDeps, ForwardRequest, ForwardUsage } from './forward-types.ts'
import { encodeDelivered } from './node-request.ts'
import { RETRY_AFTER_SECONDS, reachNode } from './reach-node.ts'
import { throwIfEnded } from './request-end.ts'
import { responseHeaders } from './response-headers.ts'
import { findStream } from './resume-stream.ts'
import { isEventStream, relayStream } from './stream-relay.ts'

export const forward: Forward = async (asked, deps) => {
  const end = endOnce(asked, deps)
  deps.state.retryBudget.noteRequest()
  const query = {
    selection: asked.selection,
    placementKey: asked.placementKey,
    routingSecret: deps.routingSecret,
    region: deps.region,
  }
  const tries = { made: 0 }
  try {
    const found = asked.lastEventId === undefined ? undefined : await findStream(asked, asked.lastEventId, query, deps)
    const request = found === undefined ? asked : { ...asked, ...sameOrigin(found.point) }
    const delivered = found === undefined ? undefined : deliveredHeader(found.point)
    const next =
      found === undefined
        ? deps.state.router.open(query, await deps.fleet())
        : deps.state.router.reopen(query, found.node)
    for (;;) {
      const reached = await reachNode(request, next, tries, deps, delivered)
      if (reached.kind === 'nobody') {
        throw reached.error
      }
      if (reached.kind === 'refused') {
        const response = refusalResponse(reached.refusal)
        end({ outcome: reached.refusal.code ?? `status_${reached.refusal.status}` })
        return response
      }
      const { connection } = reached
      if (isEventStream(connection.response)) {
        return streamResponse(request, connection, found?.point)
      }
      const reply = await readReply(connection, request, deps)
      if (reply !== undefined) {
        end({ ...usageOf(connection), outcome: 'ok' })
        return new Response(reply, { status: connection.response.status, headers: responseHeaders(connection) })
      }
    }
  } catch (error) {
    end({
      outcome: error instanceof RingletError ? error.code : asked.clientSignal.aborted ? 'client_gone' : 'internal',
    })
    throw error
  }

  function streamResponse(request: ForwardRequest, first: Connection, resumed: ResumePoint | undefined): Response {
    const body = relayStream({
      request,
      query,
      first,
      deps,
      resumed,
      onEnd: (outcome, counts) => end({ ...usageOf(first), ...counts, outcome }),
    })
    return new Response(body, { status: first.response.status, headers: responseHeaders(first) })
  }
}

/** What must be the same for the same text to come. */
function sameOrigin({ seed, createdAt }: ResumePoint): Pick<ForwardRequest, 'seed' | 'createdAt'> {
  return { seed, createdAt }
}

/** What the client has, for the node that goes on. */
function deliveredHeader({ delivered }: ResumePoint): string {
  const header = encodeDelivered(delivered)
  if (header === undefined) {
    throw new RingletError('resume_unknown', 'this stream cannot be resumed: too much of it is delivered already')
  }
  return header
}

/** The whole reply, so that a connection that breaks within it costs the client nothing. `undefined`: it broke. */
async function readReply(connection: Connection, request: ForwardRequest, deps: ForwardDeps) {
  const { nodeId } = connection.route.node
  try {
    const reply = await connection.response.arrayBuffer()
    connection.close('read')
    return reply
  } catch (cause) {
    throwIfEnded(request)
    deps.state.router.suspect(nodeId)
    const reason = cause instanceof Error ? cause.name : 'unknown'
    deps.log('reply_broken', { requestId: request.requestId, nodeId, reason })
    return undefined
  } finally {
    connection.close('unread')
  }
}

/** As the node said it; the page of something in between is not for the client. */
function refusalResponse({ status, headers, body, code }: Refusal): Response {
  if (code === 'foreign' || code?.startsWith('ticket_')) {
    throw innerRefusal(status)
  }
  const kept = new Headers({ 'content-type': headers.get('content-type') ?? 'application/json' })
  const retryAfter = headers.get('retry-after')
  if (retryAfter !== null) {
    kept.set('retry-after', retryAfter)
  }
  return new Response(body, { status, headers: kept })
}

/** Of something in between, or about the edge's own ticket: no client can do anything about it. */
function innerRefusal(status: number): RingletError {
  if (isTimeout(status)) {
    return new RingletError('deadline_exceeded', 'the node took longer than its connection lasts; stream long answers')
  }
  return status === 413
    ? new RingletError('body_too_large', 'a proxy before the node takes no body of this size')
    : new RingletError('node_unreachable', 'no node could be reached', { retryAfterSeconds: RETRY_AFTER_SECONDS })
}

function usageOf({ route, response }: Connection): Omit<ForwardUsage, 'outcome'> {
  const count = (name: string) => Number(response.headers.get(name)) || 0
  const adapterCache = response.headers.get('x-adapter-cache')
  return {
    promptTokens: count('x-prompt-tokens'),
    generatedTokens: count('x-generated-tokens'),
    nodeId: route.node.nodeId,
    ...(adapterCache === null ? {} : { adapterCache }),
  }
}

/**
 * A request is reported once, whatever ways of ending meet. Until then the request's context is kept: workerd stops running
 * the code of a client that left, and its tokens would go unmetered.
 */
function endOnce(
  request: ForwardRequest,
  deps: ForwardDeps,
): (usage: Partial<ForwardUsage> & { outcome: string }) => void {
  let ended = false
  let release: (work: Promise<void> | void) => void
  deps.waitUntil(
    new Promise<void>((resolve) => {
      release = resolve
    }),
  )
  return (usage) => {
    if (!ended) {
      ended = true
      release(request.onEnd({ promptTokens: 0, generatedTokens: 0, ...usage }))
    }
  }
}
