/** Sampling one row of logits: µs by vocabulary and parameters, medians and minima. `npx tsx bench/sampler.ts` */

import type { SamplingParams } from '../gpu-node/engine/engine-types.ts'
import { uniform } from '../gpu-node/engine/sampling/philox.ts'
import { Sampler } from '../gpu-node/engine/sampling/sampler.ts'
import { TokenHistory } from '../gpu-node/engine/sampling/score-changes.ts'

const OFF: SamplingParams = { temperature: 1, doSample: false, seed: 1, alternatives: 0 }
const CASES: Record<string, Partial<SamplingParams>> = {
  greedy: {},
  'temperature 0.8': { doSample: true, temperature: 0.8 },
  'top_p 0.95': { doSample: true, topP: 0.95 },
  'top_p 0.95, flat (temperature 3)': { doSample: true, temperature: 3, topP: 0.95 },
  'top_k 50': { doSample: true, topK: 50 },
  'top_k 50, top_p 0.95, temperature 0.8': { doSample: true, temperature: 0.8, topK: 50, topP: 0.95 },
  'min_p 0.05': { doSample: true, minP: 0.05 },
  'typical_p 0.95': { doSample: true, typicalP: 0.95 },
  'repetition penalty, greedy': { repetitionPenalty: 1.1 },
  'greedy, 5 alternatives': { alternatives: 5 },
  'watermark, greedy': { watermark: true },
}
const ROUNDS = 300
const ROWS = 16

for (const vocabSize of [49_152, 151_936]) {
  const sampler = new Sampler(vocabSize)
  const rows = Array.from({ length: ROWS }, (_, row) => trainedLike(vocabSize, row))
  console.log(`vocabulary of ${vocabSize}`.padEnd(44), 'median µs  least µs')
  for (const [name, changes] of Object.entries(CASES)) {
    const params = { ...OFF, ...changes }
    const prompt = Int32Array.from({ length: 500 }, (_, i) => (i * 31) % vocabSize)
    const history = new TokenHistory(params, prompt, new Int32Array(0))
    const times: number[] = []
    for (let round = 0; round < ROUNDS; round++) {
      const started = performance.now()
      for (const row of rows) {
        sampler.sample(row, { params, history, previousToken: 7, draw: round, mask: undefined })
      }
      times.push(((performance.now() - started) * 1000) / ROWS)
    }
    times.sort((a, b) => a - b)
    const format = (time: number | undefined) => (time ?? Number.NaN).toFixed(0).padStart(10)
    console.log(name.padEnd(44), format(times[ROUNDS >> 1]), format(times[0]))
  }
}

/** Bell-shaped logits with a spread of 2.5 and a few likely tokens above them, as language models give. */
function trainedLike(vocabSize: number, seed: number): Float32Array {
  const row = new Float32Array(vocabSize)
  for (let i = 0; i < vocabSize; i++) {
    const sum = uniform(seed, 3 * i) + uniform(seed, 3 * i + 1) + uniform(seed, 3 * i + 2)
    row[i] = (sum - 1.5) * 5
  }
  for (let i = 0; i < 40; i++) {
    row[Math.floor(uniform(seed + 100, i) * vocabSize)] = 14 - i * 0.3
  }
  return row
}
