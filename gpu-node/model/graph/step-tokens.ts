/** The input through which our own kernels learn of a step's tokens. */

import { STEP_TOKENS } from './graph-names.ts'
import type { GraphWriter } from './graph-writer.ts'

export function writeStepTokens(graph: GraphWriter): string {
  return graph.input(STEP_TOKENS, 'int64', [`${STEP_TOKENS}.words`])
}
