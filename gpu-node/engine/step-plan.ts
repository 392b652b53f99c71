/**
 * What the next step runs: one token of every running sequence, and a chunk of one prompt. Pure.
 *
 * A stream's pause is one step, so the chunk is sized to take a part of the time of the decode beside it (`stallRatio`), by
 * costs measured as the engine runs. The part grows when more sequences wait for their first token than are running: their
 * pauses count too. Without running sequences nobody pauses and the chunk is the largest.
 */

export interface PrefillView {
  /** Tokens still to run. */
  remaining: number
  /** When it got its row; ms. */
  startedAt: number
  /** It may take no more tokens than this in one run (log-probabilities of prompts need a row of logits a token). */
  maxTokens: number
}

export interface StepSituation {
  /** Running sequences whose next token is due. */
  decoding: number
  prefills: readonly PrefillView[]
  /** Waiting sequences for which a row is free. */
  admissible: number
  /** This step has already copied an adapter into a slot. */
  loadedAdapter: boolean
}

export interface StepPlan {
  decode: boolean
  /** Index into `prefills`, and how many tokens. */
  prefill: { index: number; tokens: number } | undefined
}

export interface ChunkLimits {
  /** Most and fewest tokens of a chunk beside running streams. */
  prefillChunk: number
  smallestChunk: number
  /** A chunk may take this many times the decode's time. */
  stallRatio: number
}

/** Measured: smoothed, ms. `undefined` until there is a measurement. */
export interface StepCosts {
  decodeMs: number | undefined
  prefillMsPerToken: number | undefined
}

export function planStep(situation: StepSituation, limits: ChunkLimits, costs: StepCosts): StepPlan {
  const decode = situation.decoding > 0
  // A load beside running streams has already used up the pause that they are promised to stay below.
  if (situation.prefills.length === 0 || (decode && situation.loadedAdapter)) {
    return { decode, prefill: undefined }
  }
  const index = nextPrefill(situation.prefills, costs.prefillMsPerToken ?? 1)
  const chosen = situation.prefills[index] as PrefillView
  const most = decode ? chunkBesideDecode(situation, limits, costs) : limits.prefillChunk
  return { decode, prefill: { index, tokens: Math.min(chosen.remaining, chosen.maxTokens, most) } }
}

/**
 * The one that would be done first had it run alone since it got its row: short prompts overtake long ones, and a long one is
 * overtaken only by what comes while it could itself have run.
 */
function nextPrefill(prefills: readonly PrefillView[], msPerToken: number): number {
  let next = 0
  let soonest = Number.POSITIVE_INFINITY
  for (const [index, { startedAt, remaining }] of prefills.entries()) {
    const doneAlone = startedAt + remaining * msPerToken
    if (doneAlone < soonest) {
      soonest = doneAlone
      next = index
    }
  }
  return next
}

function chunkBesideDecode(situation: StepSituation, limits: ChunkLimits, costs: StepCosts): number {
  if (costs.decodeMs === undefined || costs.prefillMsPerToken === undefined) {
    return limits.smallestChunk
  }
  const { prefills, admissible, decoding } = situation
  const ratio = limits.stallRatio * Math.max(1, (prefills.length + admissible) / decoding)
  // A clock too coarse to see the cost says that it is small.
  const affordable = Math.floor((ratio * costs.decodeMs) / Math.max(costs.prefillMsPerToken, 1e-6))
  return Math.min(limits.prefillChunk, Math.max(limits.smallestChunk, affordable))
}

/** Exponential smoothing; the newest measurement counts an eighth. */
export function smoothed(known: number | undefined, measured: number): number {
  return known === undefined ? measured : known + (measured - known) / 8
}
