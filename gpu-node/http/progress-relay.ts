/** Progress of a load to the stream that shows it: the last word from before it opened, then at most a few a second. */

import type { GenerationProgress } from './generation.ts'
import type { NodeClock } from './node-context.ts'

const MIN_GAP_MS = 250

export interface ProgressRelay {
  push(progress: GenerationProgress): void
  listen(listener: (progress: GenerationProgress) => void): void
}

export function createProgressRelay(clock: Pick<NodeClock, 'steady'>): ProgressRelay {
  let listener: ((progress: GenerationProgress) => void) | undefined
  let last: GenerationProgress | undefined
  let shownPhase: string | undefined
  let shownAt = Number.NEGATIVE_INFINITY
  const show = (progress: GenerationProgress): void => {
    const now = clock.steady()
    if (listener !== undefined && (progress.phase !== shownPhase || now - shownAt >= MIN_GAP_MS)) {
      shownPhase = progress.phase
      shownAt = now
      listener(progress)
    }
  }
  return {
    push: (progress) => {
      last = progress
      show(progress)
    },
    listen: (given) => {
      listener = given
      if (last !== undefined) {
        show(last)
      }
    },
  }
}
