/**
 * What the next step runs: one token of every running sequence, and a chunk of one prompt. Pure.
 *
 * A stream's pause is one step, so the chunk is sized to cost about as much time as the decode beside it (`stallRatio`),
 * by costs measured as the engine runs. Without running sequences nobody pauses and the chunk is the largest.
 */

export interface PrefillView {
  /** Tokens still to run. */
  remaining: number
  /** Charged work of its tenant; less goes first. */
  tenantCounter: number
  /** When its last chunk ran, or when it got its row; ms. */
  servedAt: number
  /** It may take no more tokens than this in one run (log-probabilities of prompts need a row of logits a token). */
  maxTokens: number
}

export interface StepSituation {
  /** Running sequences whose next token is due. */
  decoding: number
  prefills: readonly PrefillView[]
  /** This step has already copied an adapter into a slot. */
  loadedAdapter: boolean
  now: number
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
  /** A prefill that was passed over for this long goes next; ms. */
  maxPassedOverMs: number
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
  const index = nextPrefill(situation, limits.maxPassedOverMs)
  const chosen = situation.prefills[index] as PrefillView
  const most = decode ? chunkBesideDecode(limits, costs) : limits.prefillChunk
  return { decode, prefill: { index, tokens: Math.min(chosen.remaining, chosen.maxTokens, most) } }
}

/** One that waited too long, else the least charged tenant's, of these the shortest. */
function nextPrefill({ prefills, now }: StepSituation, maxPassedOverMs: number): number {
  const order = prefills.map((_, index) => index)
  const view = (index: number) => prefills[index] as PrefillView
  const late = order.filter((index) => now - view(index).servedAt > maxPassedOverMs)
  if (late.length > 0) {
    return late.reduce((a, b) => (view(b).servedAt < view(a).servedAt ? b : a))
  }
  order.sort((a, b) => view(a).tenantCounter - view(b).tenantCounter || view(a).remaining - view(b).remaining || a - b)
  return order[0] as number
}

function chunkBesideDecode(limits: ChunkLimits, costs: StepCosts): number {
  if (costs.decodeMs === undefined || costs.prefillMsPerToken === undefined) {
    return limits.smallestChunk
  }
  // A clock too coarse to see the cost says that it is small.
  const affordable = Math.floor((limits.stallRatio * costs.decodeMs) / Math.max(costs.prefillMsPerToken, 1e-6))
  return Math.min(limits.prefillChunk, Math.max(limits.smallestChunk, affordable))
}

/** Exponential smoothing; the newest measurement counts an eighth. */
export function smoothed(known: number | undefined, measured: number): number {
  return known === undefined ? measured : known + (measured - known) / 8
}
