/** When a request may not go on, whoever works on it. */

import type { ForwardRequest } from './forward-types.ts'

/** Throws the `RingletError` of a revoked token; for a client that left, the signal's reason, which nobody will read. */
export function throwIfEnded({ endSignal, clientSignal }: ForwardRequest): void {
  if (endSignal.aborted) {
    throw endSignal.reason
  }
  clientSignal.throwIfAborted()
}
