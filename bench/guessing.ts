/**
 * Prompt lookup for a lone sequence, on the demo model: time and runs with and without guessing, by workload.
 * `npx tsx bench/guessing.ts [--dtype f32|int8] [--rounds N]`
 */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { readPeftAdapter } from '../gpu-node/adapters/peft.ts'
import { Engine } from '../gpu-node/engine/engine.ts'
import { DEFAULT_LIMITS } from '../gpu-node/engine/engine-limits.ts'
import { openCheckpoint } from '../gpu-node/model/checkpoint.ts'
import type { WeightFormat } from '../gpu-node/model/graph/graph-form.ts'
import { packAdapter } from '../gpu-node/model/pack-adapter.ts'
import type { PackedAdapter } from '../gpu-node/model/packed-adapter.ts'
import { createOrtRunner } from '../gpu-node/model/runner/ort-runner.ts'
import { interleave } from './interleave.ts'

const { values } = parseArgs({
  options: { dtype: { type: 'string', default: 'int8' }, rounds: { type: 'string', default: '5' } },
})
const EOS = 1
const WORKLOADS = ['redact', 'orders-json', 'pirate', 'base'] as const
const folder = fileURLToPath(new URL('../models/demo/', import.meta.url))
const checkpoint = await openCheckpoint(`${folder}base`)
const sizes = { threads: 2, maxRows: 2, maxPositions: 512, adapterSlots: 5 }
const runner = await createOrtRunner({ checkpoint, dtype: values.dtype as WeightFormat, ...sizes })
const golden: { prompt_ids: number[][] } = JSON.parse(readFileSync(`${folder}golden.json`, 'utf8'))
let sequences = 0

console.log(`demo model, ${values.dtype}; prompts one after another; least times`)
for (const workload of WORKLOADS) {
  const adapter = workload === 'base' ? undefined : await load(workload)
  const engines = [0, DEFAULT_LIMITS.maxGuesses].map((maxGuesses) => {
    const limits = { maxGuesses, prefixCacheBytes: 0 }
    return new Engine({ runner, limits, now: () => performance.now(), emit: () => undefined })
  })
  const [without, ahead] = engines as [Engine, Engine]
  const run = (engine: Engine) => () => {
    for (const prompt of golden.prompt_ids) {
      submit(engine, prompt, adapter)
      while (engine.step().kind !== 'idle') {
        // One token, or as many as came true.
      }
    }
    // Both engines use the one runner, in turns.
    engine.unloadAdapter(adapter?.digest ?? '', () => undefined)
  }
  const times = interleave({ without: run(without), ahead: run(ahead) }, Number(values.rounds))
  const { guessedTokens, rightGuesses } = ahead.stats()
  const gain = ((times.without?.minMs ?? 0) / (times.ahead?.minMs ?? 1)).toFixed(2)
  const runs = `${(without.stats().steps / ahead.stats().steps).toFixed(2)} times fewer runs`
  const right = `${rightGuesses} of ${guessedTokens} guesses right`
  console.log(
    `${workload.padEnd(12)} ${times.without?.minMs.toFixed(0)} → ${times.ahead?.minMs.toFixed(0)} ms: ${gain} times as fast, ${runs}, ${right}`,
  )
}
runner.dispose()

async function load(name: string): Promise<PackedAdapter> {
  const { adapter } = await readPeftAdapter(`${folder}adapters/${name}`, checkpoint.spec)
  return packAdapter(adapter, checkpoint, runner.adapterLayout)
}

function submit(engine: Engine, prompt: number[], adapter: PackedAdapter | undefined): void {
  engine.submit(
    {
      sequenceId: String(sequences++),
      tenantId: 'bench',
      cacheSalt: '',
      promptTokens: Int32Array.from(prompt),
      deliveredTokens: new Int32Array(0),
      ...(adapter === undefined ? {} : { adapterDigest: adapter.digest }),
      sampling: { temperature: 1, doSample: false, seed: 0, alternatives: 0 },
      maxNewTokens: 100,
      eosTokens: [EOS],
      ignoreEos: false,
      promptLogprobs: false,
    },
    adapter,
  )
}
