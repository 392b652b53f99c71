/**
 * Eight sequences of eight adapters through the engine: all in one batch beside one adapter after another, and what the
 * engine costs beside the runner alone. `npx tsx bench/adapters-batched.ts [--shape 135m|0.5b] [--rounds N] [--guesses 0]`
 */

import { parseArgs } from 'node:util'
import { Engine } from '../gpu-node/engine/engine.ts'
import { DEFAULT_LIMITS } from '../gpu-node/engine/engine-limits.ts'
import { packAdapter } from '../gpu-node/model/pack-adapter.ts'
import type { PackedAdapter } from '../gpu-node/model/packed-adapter.ts'
import { createOrtRunner } from '../gpu-node/model/runner/ort-runner.ts'
import { interleave } from './interleave.ts'
import { randomAdapter, randomBase, SHAPE_05B, SHAPE_135M } from './random-base.ts'

const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: '135m' },
    rounds: { type: 'string', default: '7' },
    // Lone sequences guess ahead; random weights repeat themselves, so that it gains them more than real text would.
    guesses: { type: 'string', default: String(DEFAULT_LIMITS.maxGuesses) },
  },
})
const ADAPTERS = 8
const TOKENS = 48
const PROMPT = 16
const shape = values.shape === '0.5b' ? SHAPE_05B : SHAPE_135M
const source = randomBase(shape)
const sizes = { threads: 2, maxRows: ADAPTERS, maxPositions: 256, adapterSlots: ADAPTERS }
const runner = await createOrtRunner({ checkpoint: source, dtype: 'int8', ...sizes })
const adapters: PackedAdapter[] = []
for (let i = 0; i < ADAPTERS; i++) {
  adapters.push(await packAdapter(randomAdapter(source.decoder, 16, i + 1), source, runner.adapterLayout))
}
const clock = () => performance.now()
const limits = { prefixCacheBytes: 0, maxGuesses: Number(values.guesses) }
const engine = new Engine({ runner, limits, now: clock, emit: () => undefined })
let sequences = 0

const timings = interleave(
  {
    'one batch': () => {
      adapters.forEach(submit)
      runAll()
    },
    'one after another': () => {
      for (const adapter of adapters) {
        submit(adapter)
        runAll()
      }
    },
    'runner alone': () => {
      const adapterSlots = engine.stats().residentAdapters.map((_, slot) => slot)
      for (let token = 0; token < TOKENS - 1; token++) {
        const positions = new Int32Array(ADAPTERS).fill(PROMPT + token)
        runner.decode({ tokens: new Int32Array(ADAPTERS).fill(token), positions, adapterSlots })
      }
    },
  },
  Number(values.rounds),
)
console.log(`${values.shape} shape, int8, 2 threads; ${ADAPTERS} sequences of ${PROMPT} + ${TOKENS} tokens, rank 16`)
for (const [name, { medianMs, minMs, spread }] of Object.entries(timings)) {
  const rate = ((1000 * ADAPTERS * TOKENS) / medianMs).toFixed(0)
  const percent = (100 * spread).toFixed(0)
  console.log(
    `${name.padEnd(18)} ${medianMs.toFixed(0).padStart(7)} ms (${minMs.toFixed(0)}) ±${percent} %  ${rate} tokens/s`,
  )
}
const ratio = (of: (timing: { medianMs: number; minMs: number }) => number) =>
  (of(timings['one after another']!) / of(timings['one batch']!)).toFixed(2)
console.log(`one batch is ${ratio((t) => t.medianMs)} times as fast (${ratio((t) => t.minMs)} by the least times)`)
runner.dispose()

function submit(adapter: PackedAdapter): void {
  engine.submit(
    {
      sequenceId: String(sequences++),
      tenantId: 'bench',
      cacheSalt: '',
      promptTokens: Int32Array.from({ length: PROMPT }, (_, i) => i + 5),
      deliveredTokens: new Int32Array(0),
      adapterDigest: adapter.digest,
      sampling: { temperature: 1, doSample: false, seed: 0, alternatives: 0 },
      maxNewTokens: TOKENS,
      eosTokens: [],
      ignoreEos: true,
      promptLogprobs: false,
    },
    adapter,
  )
}

function runAll(): void {
  while (engine.step().kind !== 'idle') {
    // Each step advances every sequence.
  }
}
