/** A client comes back to a stream that broke off on its side: the node that sent it tells what the client has. */

import { RingletError } from '../../shared/errors.ts'
import { nodeTag, parseEventId, RESUME_PATH, type ResumePoint, streamFingerprint } from '../../shared/stream-resume.ts'
import type { FleetNode } from '../fleet/fleet-snapshot.ts'
import type { RouteQuery } from '../routing/router.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { createNodeRequest } from './node-request.ts'
import { throwIfEnded } from './request-end.ts'

export interface FoundStream {
  point: ResumePoint
  /** Which nodes may go on depends on the one that began. */
  node: FleetNode
}

/** A node answers from memory; one that does not within this time is as good as gone. */
const ASK_TIMEOUT_MS = 3_000
/** The stream may have gone on elsewhere after the event that the client saw last: as far as placement would have tried. */
const FURTHER_NODES = 3

/** Throws `resume_unknown`: never sent, too long ago, or the nodes that sent it are gone and took their memory with them. */
export async function findStream(
  request: ForwardRequest,
  eventId: string,
  query: RouteQuery,
  deps: ForwardDeps,
): Promise<FoundStream> {
  const tag = parseEventId(eventId)?.nodeTag
  if (tag === undefined) {
    throw new RingletError('resume_unknown', 'last-event-id is not the id of an event')
  }
  const route = new URL(request.path, 'http://node').pathname
  const fingerprint = await streamFingerprint(route, JSON.parse(request.bodyText))
  const question = JSON.stringify({ fingerprint, lastEventId: eventId })
  for (const node of await likelyNodes(tag, query, deps)) {
    const point = await askNode(request, node, question, deps)
    if (point !== undefined) {
      return { point, node }
    }
  }
  throw new RingletError(
    'resume_unknown',
    'this stream cannot be resumed: unknown, changed, too long ago, or the node that ran it is gone',
  )
}

/** The one that the event names, then those where a broken stream goes on. */
async function likelyNodes(tag: string, query: RouteQuery, deps: ForwardDeps): Promise<Set<FleetNode>> {
  const snapshot = await deps.fleet()
  const likely = new Set(snapshot.nodes.filter((node) => nodeTag(node.nodeId) === tag))
  const [any] = snapshot.ring.nodes
  if (any !== undefined) {
    const pick = deps.state.router.reopen(query, any)
    for (let further = 0; further < FURTHER_NODES; further++) {
      const picked = pick(snapshot)
      if (picked !== undefined) {
        likely.add(picked.node)
        picked.release()
      }
    }
  }
  return likely
}

/** `undefined`: it remembers no such stream, or does not answer. */
async function askNode(
  request: ForwardRequest,
  node: FleetNode,
  question: string,
  deps: ForwardDeps,
): Promise<ResumePoint | undefined> {
  const call = { ...request, path: RESUME_PATH, bodyText: question, accept: 'application/json', adapterTokens: {} }
  throwIfEnded(request)
  try {
    const { url, init } = await createNodeRequest(call, node, deps)
    const signal = AbortSignal.any([AbortSignal.timeout(ASK_TIMEOUT_MS), request.clientSignal])
    const response = await deps.fetch(url, { ...init, signal })
    if (response.ok) {
      return await response.json<ResumePoint>()
    }
    await response.body?.cancel()
  } catch (cause) {
    throwIfEnded(request)
    const reason = cause instanceof Error ? cause.name : 'unknown'
    deps.log('resume_unanswered', { requestId: request.requestId, nodeId: node.nodeId, reason })
  }
  return undefined
}
