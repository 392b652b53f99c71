/**
 * Pauses of running streams: time between two tokens while nothing else happens, while 2k-token prompts are run, while
 * adapters are loaded one after another, and while both happen. `npx tsx bench/interference.ts [--streams N] [--ratio R,…]`
 */

import { parseArgs } from 'node:util'
import { Engine } from '../gpu-node/engine/engine.ts'
import { DEFAULT_LIMITS } from '../gpu-node/engine/engine-limits.ts'
import type { SequenceRequest } from '../gpu-node/engine/engine-types.ts'
import type { EngineOutput } from '../gpu-node/engine/sequence-table.ts'
import { packAdapter } from '../gpu-node/model/pack-adapter.ts'
import type { PackedAdapter } from '../gpu-node/model/packed-adapter.ts'
import { createOrtRunner } from '../gpu-node/model/runner/ort-runner.ts'
import { randomAdapter, randomBase, SHAPE_135M } from './random-base.ts'

const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '8' },
    ratio: { type: 'string', default: String(DEFAULT_LIMITS.stallRatio) },
    smallest: { type: 'string', default: String(DEFAULT_LIMITS.smallestChunk) },
    adapters: { type: 'string', default: '0' },
    tokens: { type: 'string', default: '60' },
  },
})
const PROMPT_TOKENS = 2000
const POSITIONS = 2304
const SLOTS = 12
/** More than there are slots beside those of the streams, so that each load puts another out. */
const LOADED_ADAPTERS = 16
const streams = Number(values.streams)
const streamAdapters = Number(values.adapters)
const source = randomBase({ ...SHAPE_135M, positions: POSITIONS })
const runner = await createOrtRunner({
  checkpoint: source,
  dtype: 'int8',
  threads: 2,
  maxRows: streams + 2,
  maxPositions: POSITIONS,
  adapterSlots: SLOTS,
})
const adapters: PackedAdapter[] = []
for (let i = 0; i < streamAdapters + LOADED_ADAPTERS; i++) {
  adapters.push(await packAdapter(randomAdapter(source.decoder, 16, i + 1), source, runner.adapterLayout))
}
const megabytes = ((adapters[0]?.bytes ?? 0) / 1e6).toFixed(1)
console.log(
  `135m shape, int8, 2 threads; ${streams} streams with ${streamAdapters} adapters; an adapter: ${megabytes} MB`,
)
console.log(
  'ratio  beside the streams     pauses ms: p50    p95    p99    max   p99 / quiet p50   prompt tokens/s   loads',
)

for (const ratio of values.ratio.split(',').map(Number)) {
  measure(ratio, 'warm up', { prompts: true, loads: true })
  const quiet = measure(ratio, 'nothing', { prompts: false, loads: false })
  const rows = [
    quiet,
    measure(ratio, 'prompts of 2k', { prompts: true, loads: false }),
    measure(ratio, 'adapter loads', { prompts: false, loads: true }),
    measure(ratio, 'both', { prompts: true, loads: true }),
  ]
  for (const { name, pauses, promptRate, loads } of rows) {
    const at = (q: number) => quantile(pauses, q).toFixed(1).padStart(7)
    const relation = (quantile(pauses, 0.99) / quantile(quiet.pauses, 0.5)).toFixed(2).padStart(12)
    const rest = `${promptRate.toFixed(0).padStart(17)}${String(loads).padStart(11)}`
    console.log(
      `${String(ratio).padEnd(6)} ${name.padEnd(22)} ${at(0.5)}${at(0.95)}${at(0.99)}${at(1)}${relation}${rest}`,
    )
  }
}
runner.dispose()

interface Measured {
  name: string
  pauses: number[]
  promptRate: number
  loads: number
}

function measure(stallRatio: number, name: string, beside: { prompts: boolean; loads: boolean }): Measured {
  const lastToken = new Map<string, number>()
  const pauses: number[] = []
  const counts = { streamTokens: 0, ended: 0, firstTokens: 0 }
  const onOutput = (output: EngineOutput) => {
    if (output.kind === 'token' && output.sequenceId.startsWith('stream')) {
      const now = performance.now()
      const last = lastToken.get(output.sequenceId)
      if (last !== undefined && lastToken.size === streams) {
        pauses.push(now - last)
      }
      lastToken.set(output.sequenceId, now)
    }
    counts.ended += output.kind === 'finished' ? 1 : 0
  }
  const limits = { stallRatio, smallestChunk: Number(values.smallest), prefixCacheBytes: 0 }
  const engine = new Engine({ runner, limits, now: () => performance.now(), emit: onOutput })
  for (let i = 0; i < streams; i++) {
    const adapter = i < streamAdapters ? adapters[i] : undefined
    engine.submit(requestOf(`stream-${i}`, 64, 1000, adapter), adapter)
  }
  while (lastToken.size < streams) {
    engine.step()
  }
  pauses.length = 0
  const before = engine.stats()
  const started = performance.now()
  let submitted = 0
  let loads = 0
  while (pauses.length < Number(values.tokens) * streams) {
    if (beside.prompts && engine.stats().waiting === 0 && engine.stats().freeRows > 0) {
      engine.submit(requestOf(`prompt-${submitted++}`, PROMPT_TOKENS, 1), undefined)
    }
    if (beside.loads && engine.stats().waiting === 0 && engine.stats().freeRows > 0) {
      const adapter = adapters[streamAdapters + (loads++ % LOADED_ADAPTERS)]
      engine.submit(requestOf(`load-${loads}`, 8, 2, adapter), adapter)
    }
    engine.step()
  }
  const seconds = (performance.now() - started) / 1000
  const promptRate = (engine.stats().prefillTokens - before.prefillTokens) / seconds
  return { name, pauses, promptRate, loads }
}

function requestOf(
  sequenceId: string,
  promptLength: number,
  maxNewTokens: number,
  adapter?: PackedAdapter,
): SequenceRequest {
  return {
    sequenceId,
    tenantId: 'bench',
    cacheSalt: '',
    promptTokens: Int32Array.from(
      { length: promptLength },
      (_, i) => (i * 7919 + sequenceId.length) % SHAPE_135M.vocab,
    ),
    deliveredTokens: new Int32Array(0),
    ...(adapter === undefined ? {} : { adapterDigest: adapter.digest }),
    sampling: { temperature: 1, doSample: false, seed: 0, alternatives: 0 },
    maxNewTokens,
    eosTokens: [],
    ignoreEos: true,
    promptLogprobs: false,
  }
}

function quantile(numbers: readonly number[], q: number): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN
}
