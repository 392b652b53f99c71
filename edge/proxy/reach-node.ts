/** Tries nodes in the router's order until one takes the request, as far as error codes and the retry budget allow. */

import { RingletError } from '../../shared/errors.ts'
import type { RoutePicker } from '../routing/router.ts'
import { type AttemptOutcome, attemptNode, type Connection, type Refusal } from './attempt.ts'
import type { ForwardDeps, ForwardRequest } from './forward-types.ts'
import { hintOwner } from './prefetch.ts'
import { throwIfEnded } from './request-end.ts'

export type Reached =
  | { kind: 'connected'; connection: Connection }
  /** The answer to give: not worth a retry, or the last of those that were. */
  | { kind: 'refused'; refusal: Refusal; retry: boolean }
  | { kind: 'nobody'; error: RingletError }

/** After how long a client should come again when the fleet has no room or no node. */
export const RETRY_AFTER_SECONDS = 2

/** How many nodes were tried for a request so far; one object a request, one more for each continuation. */
export interface Tries {
  made: number
}

/** `delivered`: the stream that is to be continued, encoded. */
export async function reachNode(
  request: ForwardRequest,
  pick: RoutePicker,
  tries: Tries,
  deps: ForwardDeps,
  delivered?: string,
): Promise<Reached> {
  let last: Exclude<AttemptOutcome, { kind: 'connected' }> | undefined
  while (tries.made < deps.state.timings.attempts) {
    throwIfEnded(request)
    // A continuation is not asked from the budget: what it saves is already half delivered.
    if (tries.made > 0 && delivered === undefined && !deps.state.retryBudget.take()) {
      deps.log('retry_budget_spent', { requestId: request.requestId })
      break
    }
    const route = pick(await deps.fleet())
    if (route === undefined) {
      break
    }
    tries.made += 1
    hintOwner(request, route, deps)
    const outcome = await attemptNode(request, route, deps, delivered)
    if (outcome.kind === 'connected' || (outcome.kind === 'refused' && !outcome.retry)) {
      return outcome
    }
    deps.log('node_passed_over', {
      requestId: request.requestId,
      nodeId: route.node.nodeId,
      code: outcome.kind === 'refused' ? codeOf(outcome.refusal) : 'node_unreachable',
    })
    // A node's own words about being full say more than that another could not be reached.
    last = outcome.kind === 'unreachable' && last !== undefined ? last : outcome
  }
  throwIfEnded(request)
  if (last?.kind === 'refused') {
    return last
  }
  const extras = { retryAfterSeconds: RETRY_AFTER_SECONDS }
  const error =
    tries.made === 0
      ? new RingletError('no_node', 'no node is in the fleet', extras)
      : new RingletError('node_unreachable', 'no node could be reached', extras)
  return { kind: 'nobody', error }
}

function codeOf({ code, status }: Refusal): string | number {
  return code === undefined || code === 'foreign' ? status : code
}
