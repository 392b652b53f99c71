/** An engine on the arithmetic runner with a clock that tests turn, its outputs by sequence, and the checks after every step. */

import { Engine, type EngineParts, type StepOutcome } from '../../gpu-node/engine/engine.ts'
import type { EngineLimits } from '../../gpu-node/engine/engine-limits.ts'
import type {
  GeneratedToken,
  ModelRunner,
  SamplingParams,
  SequenceRequest,
} from '../../gpu-node/engine/engine-types.ts'
import { checkInvariants } from '../../gpu-node/engine/invariants.ts'
import type { MaskSource } from '../../gpu-node/engine/mask-source.ts'
import { Sampler } from '../../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../../gpu-node/engine/sampling/score-changes.ts'
import type { EngineOutput } from '../../gpu-node/engine/sequence-table.ts'
import { ArithmeticRunner, arithmeticLogits, SMALL_ARITHMETIC } from './arithmetic-runner.ts'

export const GREEDY: SamplingParams = { temperature: 1, doSample: false, seed: 0, alternatives: 0 }

export function requestOf(sequenceId: string, changes: Partial<SequenceRequest> = {}): SequenceRequest {
  return {
    sequenceId,
    tenantId: 'tenant',
    cacheSalt: 'salt',
    promptTokens: Int32Array.of(1, 2, 3),
    deliveredTokens: new Int32Array(0),
    sampling: GREEDY,
    maxNewTokens: 5,
    eosTokens: [],
    ignoreEos: false,
    promptLogprobs: false,
    ...changes,
  }
}

export interface HarnessOptions {
  runner?: ModelRunner
  limits?: Partial<EngineLimits>
  masks?: MaskSource
}

export class EngineHarness {
  readonly engine: Engine
  readonly runner: ModelRunner
  readonly outputs: EngineOutput[] = []
  /** Milliseconds; turned by tests. */
  clock = 0

  constructor({ runner = new ArithmeticRunner(SMALL_ARITHMETIC), limits, masks }: HarnessOptions = {}) {
    this.runner = runner
    const parts: EngineParts = {
      runner,
      now: () => this.clock,
      emit: (output) => this.outputs.push(output),
      ...(limits === undefined ? {} : { limits }),
      ...(masks === undefined ? {} : { masks }),
    }
    this.engine = new Engine(parts)
  }

  /** One step; throws when it leaves an invariant violated. */
  step(): StepOutcome {
    const outcome = this.engine.step()
    const violations = checkInvariants(this.engine.snapshot())
    if (violations.length > 0) {
      throw new Error(violations.join('; '))
    }
    return outcome
  }

  /** Steps, each a millisecond long, until no sequence is left. */
  runUntilIdle(maxSteps = 10_000): number {
    for (let steps = 0; steps < maxSteps; steps++) {
      if (this.step().kind === 'idle') {
        return steps
      }
      this.clock++
    }
    throw new Error(`not idle after ${maxSteps} steps`)
  }

  of(sequenceId: string): EngineOutput[] {
    return this.outputs.filter((output) => output.sequenceId === sequenceId)
  }

  tokens(sequenceId: string): GeneratedToken[] {
    return this.of(sequenceId).flatMap((output) => (output.kind === 'token' ? [output.token] : []))
  }

  tokenIds(sequenceId: string): number[] {
    return this.tokens(sequenceId).map((token) => token.tokenId)
  }

  /** The last events of a sequence; a healthy engine gives one. */
  endings(sequenceId: string): EngineOutput[] {
    return this.of(sequenceId).filter(({ kind }) => kind === 'finished' || kind === 'failed' || kind === 'aborted')
  }
}

/** What a request must generate, computed token by token with neither rows nor batches; delivered tokens are left out. */
export function aloneOnArithmetic(
  request: SequenceRequest,
  adapterValue: number,
  maxPositions: number,
): GeneratedToken[] {
  const { vocabSize } = SMALL_ARITHMETIC
  const sampler = new Sampler(vocabSize)
  const history = new TokenHistory(request.sampling, request.promptTokens, request.deliveredTokens)
  const tokens = [...request.promptTokens, ...request.deliveredTokens]
  const generated: GeneratedToken[] = []
  let draw = request.deliveredTokens.length
  while (draw < request.maxNewTokens && tokens.length < maxPositions) {
    const drawn = sampler.sample(arithmeticLogits(tokens, adapterValue, vocabSize), {
      params: request.sampling,
      history,
      previousToken: tokens.at(-1) as number,
      draw: draw++,
      mask: undefined,
    })
    if (drawn.kind !== 'token') {
      throw new Error(drawn.kind)
    }
    generated.push(drawn.token)
    tokens.push(drawn.token.tokenId)
    history.add(drawn.token.tokenId)
    if (!request.ignoreEos && request.eosTokens.includes(drawn.token.tokenId)) {
      break
    }
  }
  return generated
}
