/** One try at one node, up to its headers: what came of it, and may another node be tried? */

import { ERROR_KINDS, type ErrorCode, readErrorCode } from '../../shared/errors.ts'
import { NODE_LOAD_HEADER } from '../../shared/fleet.ts'
import type { Route } from '../routing/router.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { createNodeRequest } from './node-request.ts'
import { throwIfEnded } from './request-end.ts'

/** A refusal, whole; a node's own is passed on as it is when nothing else helps. */
export interface Refusal {
  status: number
  headers: Headers
  body: string
  /** `foreign`: the page of something between edge and node. `undefined`: a code that a newer node knows. */
  code: ErrorCode | 'foreign' | undefined
}

/** A node that answers with success. Its owner must call `close` at the end, whatever the end is. */
export interface Connection {
  route: Route
  response: Response
  /** Gives the node's load back, and ends its request unless the answer has been read to its end. */
  close: (answer: 'read' | 'unread') => void
  /** Restarts the clock of `guard`. */
  alive: () => void
}

export type AttemptOutcome =
  | { kind: 'connected'; connection: Connection }
  | { kind: 'refused'; refusal: Refusal; retry: boolean }
  | { kind: 'unreachable' }

export async function attemptNode(
  request: ForwardRequest,
  route: Route,
  deps: ForwardDeps,
  delivered?: string,
): Promise<AttemptOutcome> {
  const { timings } = deps.state
  const guard = guardNode(request, route, deps, request.stream ? timings.streamHeadersMs : timings.replyMs)
  let closed = false
  const close: Connection['close'] = (answer) => {
    if (!closed) {
      closed = true
      guard.stop(answer === 'unread')
      route.release()
    }
  }
  try {
    throwIfEnded(request)
    const { url, init } = await createNodeRequest(request, route.node, deps, delivered)
    const response = await deps.fetch(url, { ...init, signal: guard.signal })
    noteLoad(route, response, deps)
    if (response.ok) {
      checkNodes(response)
      if (request.stream) {
        guard.alive(timings.stallMs)
      }
      return { kind: 'connected', connection: { route, response, close, alive: () => guard.alive(timings.stallMs) } }
    }
    const refusal = await readRefusal(response)
    close('read')
    return { kind: 'refused', refusal, retry: mayRetry(refusal) }
  } catch (cause) {
    close('unread')
    throwIfEnded(request)
    deps.state.router.suspect(route.node.nodeId)
    deps.log('node_unreachable', {
      requestId: request.requestId,
      nodeId: route.node.nodeId,
      reason: cause instanceof Error ? cause.name : 'unknown',
    })
    return { kind: 'unreachable' }
  }
}

/**
 * By the code. Something in between that does not know the node, lost it, or wants a login leaves the hope that another node is
 * better off; what ran out of patience (504, 524) would do so again, and what takes no such body (413) stands before the others too.
 */
function mayRetry({ status, code }: Refusal): boolean {
  if (code === 'foreign') {
    return !isTimeout(status) && status !== 413
  }
  return code !== undefined && ERROR_KINDS[code].retryElsewhere
}

/** Throws where a success is not a node's: those answer with JSON or events. */
function checkNodes({ headers }: Response): void {
  if (!/^(application\/json|text\/event-stream)\b/i.test(headers.get('content-type') ?? '')) {
    throw new DOMException('the answer is not a node’s', 'DataError')
  }
}

export function isTimeout(status: number): boolean {
  return status === 504 || status === 524
}

function noteLoad({ node }: Route, response: Response, deps: ForwardDeps): void {
  const load = response.headers.get(NODE_LOAD_HEADER)
  if (load !== null && /^\d{1,6}$/.test(load)) {
    deps.state.router.noteLoad(node.nodeId, Number(load))
  }
}

const MAX_REFUSAL_BYTES = 64 * 1024

async function readRefusal(response: Response): Promise<Refusal> {
  const body = await response.text()
  const { status, headers } = response
  return { status, headers, body: body.slice(0, MAX_REFUSAL_BYTES), code: errorCode(body) }
}

/** The code in LoRAX's body (`code`) or in OpenAI's (`error.code`). */
function errorCode(body: string): Refusal['code'] {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch {
    return 'foreign'
  }
  const outer = field(value, 'code')
  const code = typeof outer === 'string' ? outer : field(field(value, 'error'), 'code')
  return typeof code === 'string' ? readErrorCode(code) : 'foreign'
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined
}

interface Guard {
  signal: AbortSignal
  /** The node gave a sign of life; the next must come within this time. */
  alive: (silenceMs: number) => void
  /** An abort costs as much as a tenth of a small request, so it is left out where there is nothing to end. */
  stop: (abortRequest: boolean) => void
}

/**
 * Aborts the request to a node that is silent for too long, or that the fleet says is gone: a node without power closes no
 * connection. And when the client left, or may not go on.
 */
function guardNode(request: ForwardRequest, route: Route, deps: ForwardDeps, silenceMs: number): Guard {
  const controller = new AbortController()
  const abort = () => controller.abort()
  const ends = [request.clientSignal, request.endSignal]
  for (const signal of ends) {
    signal.addEventListener('abort', abort)
  }
  let heardAt = deps.now()
  let limitMs = silenceMs
  const look = async () => {
    const silentMs = deps.now() - heardAt
    if (silentMs >= limitMs) {
      controller.abort(new DOMException('the node is silent', 'TimeoutError'))
    } else if (silentMs >= deps.state.timings.watchMs && !(await isInFleet(route, deps))) {
      controller.abort(new DOMException('the node left the fleet', 'TimeoutError'))
    }
  }
  const timer = setInterval(() => void look(), Math.min(deps.state.timings.watchMs, silenceMs))
  return {
    signal: controller.signal,
    alive: (nextMs) => {
      heardAt = deps.now()
      limitMs = nextMs
    },
    stop: (abortRequest) => {
      clearInterval(timer)
      for (const signal of ends) {
        signal.removeEventListener('abort', abort)
      }
      if (abortRequest) {
        abort()
      }
    },
  }
}

/**
 * A restarted node is another process: what ran on the old one is gone. An empty fleet says more about the registry than
 * about this node.
 */
async function isInFleet({ node }: Route, deps: ForwardDeps): Promise<boolean> {
  const { nodes } = await deps.fleet()
  return nodes.length === 0 || nodes.some((other) => other.nodeId === node.nodeId && other.bootId === node.bootId)
}
