/**
 * Sampling written out as transformers describes it: whole sorts, double precision, one step after the other. Scores are
 * single precision, as in the engine, so that ties are the same.
 */

import type { SamplingParams } from '../../gpu-node/engine/engine-types.ts'

interface Candidate {
  id: number
  score: number
}

export interface SlowResult {
  tokenId: number
  /** Smallest distance of any cumulative probability to the limit it was compared with: a tiny one may fall either way. */
  margin: number
}

/** `random` in [0, 1). */
export function slowSample(
  logits: ArrayLike<number>,
  params: SamplingParams,
  seen: { prompt: readonly number[]; generated: readonly number[] },
  random: number,
): SlowResult {
  let candidates = Array.from(logits, (score, id): Candidate => ({ id, score }))
  const change = (id: number, to: (score: number) => number) => {
    const candidate = candidates[id] as Candidate
    candidate.score = Math.fround(to(candidate.score))
  }
  for (const [id, bias] of params.logitBias ?? []) {
    change(id, (score) => score + bias)
  }
  const { repetitionPenalty: penalty = 1, frequencyPenalty = 0, presencePenalty = 0 } = params
  for (const id of new Set([...seen.prompt, ...seen.generated])) {
    change(id, (score) => (score > 0 ? score / penalty : score * penalty))
  }
  for (const id of new Set(seen.generated)) {
    const count = seen.generated.filter((other) => other === id).length
    change(id, (score) => score - frequencyPenalty * count - presencePenalty)
  }
  if (!params.doSample || params.temperature === 0) {
    return { tokenId: falling(candidates)[0]?.id ?? -1, margin: 1 }
  }
  candidates = candidates.map(({ id, score }) => ({ id, score: score / params.temperature }))
  let margin = 1
  const limit = (cumulative: number, at: number) => {
    margin = Math.min(margin, Math.abs(cumulative - at))
    return cumulative < at
  }
  const { topK, topP = 1, minP = 0, typicalP = 1 } = params
  if (topK !== undefined) {
    const least = falling(candidates)[Math.min(topK, candidates.length) - 1]?.score ?? 0
    candidates = candidates.filter(({ score }) => score >= least)
  }
  if (topP < 1) {
    const sorted = falling(candidates)
    const p = softmax(sorted)
    let before = 0
    candidates = sorted.filter((_, i) => {
      const stays = i === 0 || limit(before, topP)
      before += p[i] as number
      return stays
    })
  }
  if (minP > 0) {
    const p = softmax(candidates)
    const least = minP * Math.max(...p)
    candidates = candidates.filter((_, i) => !limit(p[i] as number, least))
  }
  if (typicalP < 1) {
    candidates = typical(candidates, typicalP, limit)
  }
  candidates.sort((a, b) => a.id - b.id)
  const p = softmax(candidates)
  let cumulative = 0
  for (const [i, { id }] of candidates.entries()) {
    cumulative += p[i] as number
    if (!limit(cumulative, random) || i === candidates.length - 1) {
      return { tokenId: id, margin }
    }
  }
  throw new Error('no candidates')
}

function typical(
  candidates: Candidate[],
  mass: number,
  limit: (cumulative: number, at: number) => boolean,
): Candidate[] {
  const p = softmax(candidates)
  const entropy = -p.reduce((sum, one) => (one > 0 ? sum + one * Math.log(one) : sum), 0)
  const items = candidates.map((candidate, i) => {
    const probability = p[i] as number
    return { candidate, p: probability, distance: Math.abs(-Math.log(probability) - entropy) }
  })
  items.sort((a, b) => a.distance - b.distance)
  let cumulative = 0
  let last = 0
  for (const [i, item] of items.entries()) {
    cumulative += item.p
    last = i
    if (!limit(cumulative, mass)) {
      break
    }
  }
  const furthest = items[last]?.distance ?? 0
  return items.filter(({ distance }) => distance <= furthest).map(({ candidate }) => candidate)
}

function falling(candidates: readonly Candidate[]): Candidate[] {
  return [...candidates].sort((a, b) => b.score - a.score || a.id - b.id)
}

function softmax(candidates: readonly Candidate[]): number[] {
  const best = Math.max(...candidates.map(({ score }) => score))
  const weights = candidates.map(({ score }) => Math.exp(score - best))
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  return weights.map((weight) => weight / total)
}
