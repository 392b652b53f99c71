/**
 * What the next step runs: one token of every running sequence, and chunks of prompts. Pure.
 *
 * A stream's pause is one step, so the chunks are sized to take a part of the time of the decode beside them (`stallRatio`),
 * by costs measured as the engine runs. The part grows when more sequences wait for their first token than are running: their
 * pauses count too. Without running sequences nobody pauses and the chunks are the largest.
 */

export interface PrefillView {
  /** Tokens still to run. */
  remaining: number
  /** When it got its row; ms. */
  startedAt: number
  /** It may take no more tokens than this in one run (log-probabilities of prompts need a row of logits a token). */
  maxTokens: number
  /** It can share its run neither with decoding rows nor with other prompts. */
  alone: boolean
}

export interface StepSituation {
  /** Running sequences whose next token is due. */
  decoding: number
  prefills: readonly PrefillView[]
  /** Waiting sequences for which a row is free. */
  admissible: number
  /** This step has already copied an adapter into a slot. */
  loadedAdapter: boolean
  /** What a decode costs must be measured again. */
  decodeAlone: boolean
}

export interface StepPlan {
  decode: boolean
  /** In the order of their turn; several only of prompts that may share a run. */
  chunks: PlannedChunk[]
}

/** Index into `prefills`, and how many tokens. */
export interface PlannedChunk {
  index: number
  tokens: number
}

export interface ChunkLimits {
  /** Most and fewest tokens of a step's chunks beside running streams. */
  prefillChunk: number
  smallestChunk: number
  /** They may take this many times the decode's time. */
  stallRatio: number
}

/** As measured, ms; `undefined` until they are. */
export interface StepCosts {
  decodeMs: number | undefined
  prefillMsPerToken: number | undefined
}

export function planStep(situation: StepSituation, limits: ChunkLimits, costs: StepCosts): StepPlan {
  const decode = situation.decoding > 0
  // A load beside running streams has already used up the pause that they are promised to stay below.
  if (situation.prefills.length === 0 || (decode && (situation.loadedAdapter || situation.decodeAlone))) {
    return { decode, chunks: [] }
  }
  let left = decode ? tokensBesideDecode(situation, limits, costs) : limits.prefillChunk
  const chunks: PlannedChunk[] = []
  for (const { index, view } of byTurn(situation.prefills, costs.prefillMsPerToken ?? 1)) {
    if (left === 0 || (view.alone && chunks.length > 0)) {
      break
    }
    const tokens = Math.min(view.remaining, view.maxTokens, left)
    chunks.push({ index, tokens })
    left = view.alone ? 0 : left - tokens
  }
  return { decode, chunks }
}

/**
 * First the one that would be done first had it run alone since it got its row: short prompts overtake long ones, and a long
 * one is overtaken only by what comes while it could itself have run.
 */
function byTurn(prefills: readonly PrefillView[], msPerToken: number) {
  return prefills
    .map((view, index) => ({ view, index, doneAlone: view.startedAt + view.remaining * msPerToken }))
    .sort((a, b) => a.doneAlone - b.doneAlone || a.index - b.index)
}

function tokensBesideDecode(situation: StepSituation, limits: ChunkLimits, costs: StepCosts): number {
  if (costs.decodeMs === undefined || costs.prefillMsPerToken === undefined) {
    return limits.smallestChunk
  }
  const { prefills, admissible, decoding } = situation
  const ratio = limits.stallRatio * Math.max(1, (prefills.length + admissible) / decoding)
  // A clock too coarse to see the cost says that it is small.
  const affordable = Math.floor((ratio * costs.decodeMs) / Math.max(costs.prefillMsPerToken, 1e-6))
  return Math.min(limits.prefillChunk, Math.max(limits.smallestChunk, affordable))
}
