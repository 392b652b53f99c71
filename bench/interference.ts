/**
 * Pauses of running streams: time between two tokens while nothing else happens, while 2k-token prompts are run, while
 * adapters are loaded one after another, and while both happen; in short rounds, forwards and then backwards.
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
import { describeMachine, quantile } from './machine.ts'
import { randomAdapter, randomBase, SHAPE_135M } from './random-base.ts'

const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '8' },
    ratio: { type: 'string', default: String(DEFAULT_LIMITS.stallRatio) },
    smallest: { type: 'string', default: String(DEFAULT_LIMITS.smallestChunk) },
    adapters: { type: 'string', default: '0' },
    tokens: { type: 'string', default: '60' },
    rounds: { type: 'string', default: '8' },
  },
})
const GOAL = 2
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
console.log(describeMachine())
console.log(
  `135m shape, int8, 2 threads; ${streams} streams with ${streamAdapters} adapters; an adapter: ${megabytes} MB`,
)

const QUIET = 'nothing'
const PHASES: Record<string, { prompts: boolean; loads: boolean }> = {
  [QUIET]: { prompts: false, loads: false },
  'prompts of 2k': { prompts: true, loads: false },
  'adapter loads': { prompts: false, loads: true },
  both: { prompts: true, loads: true },
}

interface Measured {
  /** Between two tokens of a stream; ms. */
  pauses: number[]
  /** Prompt tokens and adapters a second. */
  promptRate: number
  loadRate: number
}

const lastToken = new Map<string, number>()
const pauses: number[] = []
const limits = { stallRatio: Number(values.ratio), smallestChunk: Number(values.smallest), prefixCacheBytes: 0 }
const engine = new Engine({ runner, limits, now: () => performance.now(), emit: onOutput })
let sequences = 0
let loadedAdapters = 0

// The sessions' first runs, and costs learned.
measure({ prompts: true, loads: true })
const rounds: Record<string, Measured>[] = []
for (let round = 0; round < Number(values.rounds); round++) {
  const measured: Record<string, Measured> = {}
  const phases = Object.entries(PHASES)
  for (const [name, phase] of round % 2 === 0 ? phases : phases.toReversed()) {
    measured[name] = measure(phase)
  }
  rounds.push(measured)
}
report(rounds)
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
  const seconds = (performance.now() - started) / 1000
  const promptRate = (engine.stats().prefillTokens - before) / seconds
  const result = { pauses: [...pauses], promptRate, loadRate: loads / seconds }
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

function report(measured: readonly Record<string, Measured>[]): void {
  console.log(
    'beside the streams   pauses ms: p50    p95    p99    max   p99 / quiet p50      p99 / quiet p99      prompt tokens/s   loads/s',
  )
  const all = (name: string) => measured.flatMap((round) => round[name]!.pauses)
  for (const name of Object.keys(PHASES)) {
    const at = (q: number) => quantile(all(name), q).toFixed(1).padStart(7)
    const relation = (q: number) => {
      const together = quantile(all(name), 0.99) / quantile(all(QUIET), q)
      const apart = measured.map((round) => quantile(round[name]!.pauses, 0.99) / quantile(round[QUIET]!.pauses, q))
      const range = `${quantile(apart, 0).toFixed(2)}–${quantile(apart, 1).toFixed(2)}`
      return `   ${together.toFixed(2)} (${range})`.padEnd(22)
    }
    const mean = (what: 'promptRate' | 'loadRate') =>
      (measured.reduce((sum, round) => sum + round[name]![what], 0) / measured.length).toFixed(0).padStart(12)
    console.log(
      `${name.padEnd(25)} ${at(0.5)}${at(0.95)}${at(0.99)}${at(1)}${relation(0.5)}${relation(0.99)}${mean('promptRate')}${mean('loadRate')}`,
    )
  }
  console.log(
    `${measured.length} rounds; ratios of all pauses together (least–most of the rounds, each beside its own quiet phase); ` +
      `goal: p99 / quiet p50 ≤ ${GOAL}`,
  )
}
