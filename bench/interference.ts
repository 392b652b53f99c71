/**
 * Pauses of running streams: time between two tokens while nothing else happens, while 2k-token prompts are run, while
 * adapters are loaded one after another, and while both happen, in turns.
 * `npx tsx bench/interference.ts [--streams N] [--adapters N] [--rounds N] [--ratio R] [--smallest N]`
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
    tokens: { type: 'string', default: '100' },
    rounds: { type: 'string', default: '5' },
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

const PHASES: Record<string, { prompts: boolean; loads: boolean }> = {
  nothing: { prompts: false, loads: false },
  'prompts of 2k': { prompts: true, loads: false },
  'adapter loads': { prompts: false, loads: true },
  both: { prompts: true, loads: true },
}

interface Measured {
  /** Between two tokens of a stream; ms. */
  pauses: number[]
  promptRate: number
  loads: number
}

const lastToken = new Map<string, number>()
const pauses: number[] = []
const limits = { stallRatio: Number(values.ratio), smallestChunk: Number(values.smallest), prefixCacheBytes: 0 }
const engine = new Engine({ runner, limits, now: () => performance.now(), emit: onOutput })
let sequences = 0
let loadedAdapters = 0

measure({ prompts: true, loads: true })
console.log(
  'beside the streams   round   pauses ms: p50    p95    p99    max   p99 / quiet p50   prompt tokens/s   loads',
)
const relations = new Map<string, number[]>()
for (let round = 1; round <= Number(values.rounds); round++) {
  let quiet = Number.NaN
  for (const [name, phase] of Object.entries(PHASES)) {
    const { pauses: measured, promptRate, loads } = measure(phase)
    quiet = name === 'nothing' ? quantile(measured, 0.5) : quiet
    const relation = quantile(measured, 0.99) / quiet
    relations.set(name, [...(relations.get(name) ?? []), relation])
    const at = (q: number) => quantile(measured, q).toFixed(1).padStart(7)
    const rest = `${relation.toFixed(2).padStart(12)}${promptRate.toFixed(0).padStart(17)}${String(loads).padStart(11)}`
    console.log(
      `${name.padEnd(20)} ${String(round).padStart(5)}         ${at(0.5)}${at(0.95)}${at(0.99)}${at(1)}${rest}`,
    )
  }
}
for (const [name, all] of relations) {
  const format = (q: number) => quantile(all, q).toFixed(2)
  console.log(
    `${name}: p99 / quiet p50 is ${format(0.5)} (median of the rounds; least ${format(0)}, most ${format(1)})`,
  )
}
runner.dispose()

function onOutput(output: EngineOutput): void {
  if (output.kind === 'token' && output.sequenceId.startsWith('stream')) {
    const now = performance.now()
    const last = lastToken.get(output.sequenceId)
    if (last !== undefined) {
      pauses.push(now - last)
    }
    lastToken.set(output.sequenceId, now)
  }
}

/** Fresh streams, so that each phase sees the same positions. */
function measure(beside: { prompts: boolean; loads: boolean }): Measured {
  lastToken.clear()
  const ids: string[] = []
  const submit = (kind: string, promptLength: number, maxNewTokens: number, adapter?: PackedAdapter) => {
    const id = `${kind}-${sequences++}`
    ids.push(id)
    engine.submit(requestOf(id, promptLength, maxNewTokens, adapter), adapter)
  }
  for (let i = 0; i < streams; i++) {
    submit('stream', 64, 1000, i < streamAdapters ? adapters[i] : undefined)
  }
  while (lastToken.size < streams) {
    engine.step()
  }
  for (let step = 0; step < 5; step++) {
    engine.step()
  }
  pauses.length = 0
  const before = engine.stats().prefillTokens
  const started = performance.now()
  let loads = 0
  while (pauses.length < Number(values.tokens) * streams) {
    const hasRoom = () => engine.stats().waiting === 0 && engine.stats().freeRows > 0
    if (beside.loads && hasRoom()) {
      submit('load', 8, 2, adapters[streamAdapters + (loadedAdapters++ % LOADED_ADAPTERS)])
      loads++
    }
    if (beside.prompts && hasRoom()) {
      submit('prompt', PROMPT_TOKENS, 1)
    }
    engine.step()
  }
  const promptRate = (engine.stats().prefillTokens - before) / ((performance.now() - started) / 1000)
  const result = { pauses: [...pauses], promptRate, loads }
  for (const id of ids) {
    engine.abort(id)
  }
  return result
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
