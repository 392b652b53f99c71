/** One try at one node, up to its headers: what came of it, and may another node be tried? */

import { ERROR_KINDS, type ErrorCode, readErrorCode } from '../../shared/errors.ts'
import { NODE_LOAD_HEADER } from '../../shared/fleet.ts'
import type { Route } from '../routing/router.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { createNodeRequest } from './node-request.ts'
import { throwIfEnded } from './request-end.ts'

/** A node's refusal, whole: passed on as it is when nothing else helps. */
export interface Refusal {
  status: number
  headers: Headers
  body: string
  code: ErrorCode | undefined
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
 * By the code; without one the answer is not a node's but of something in between. A tunnel that lost its origin says 502 or
 * 530, and another node may be better off; one that ran out of patience says 504 or 524, and a second try would take as long.
 */
function mayRetry({ status, code }: Refusal): boolean {
  return code === undefined ? status >= 500 && !isTimeout(status) : ERROR_KINDS[code].retryElsewhere
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
  const body = (await response.text()).slice(0, MAX_REFUSAL_BYTES)
  return { status: response.status, headers: response.headers, body, code: errorCode(body) }
}

/** The code in LoRAX's body (`code`) or in OpenAI's (`error.code`). */
function errorCode(body: string): ErrorCode | undefined {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch {
    return undefined
  }
  const outer = field(value, 'code')
  const code = typeof outer === 'string' ? outer : field(field(value, 'error'), 'code')
  return readErrorCode(code)
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
