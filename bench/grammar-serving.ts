/**
 * What a grammar costs a node that serves: tokens/s of N streams at once, free and under a JSON schema, in turns.
 * `npx tsx bench/grammar-serving.ts [--model DIR] [--streams 16] [--rounds 5] [--dtype int8]`
 */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { startBenchNode } from './bench-node.ts'

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'models/demo/base' },
    streams: { type: 'string', default: '16' },
    rounds: { type: 'string', default: '5' },
    dtype: { type: 'string', default: 'int8' },
  },
})
const TOKENS = 64
const streams = Number(values.streams)
/** A text so long that every stream is still in it after TOKENS tokens. */
const schema = { type: 'object', properties: { text: { type: 'string', minLength: 2000 } }, required: ['text'] }
const FORMATS = { free: {}, 'under a schema': { response_format: { type: 'json_schema', schema } } }

const state = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
const sizes = ['--max-sequences', values.streams, '--max-positions', '256', '--threads', '2', '--dtype', values.dtype]
const node = await startBenchNode(['--model', values.model, '--state', state, ...sizes])
let asked = 0
try {
  const speeds = new Map(Object.keys(FORMATS).map((name) => [name, [] as number[]]))
  for (let round = -1; round < Number(values.rounds); round++) {
    for (const [name, format] of Object.entries(FORMATS)) {
      const speed = await tokensPerSecond(format)
      // The first round warms up.
      if (round >= 0) {
        speeds.get(name)?.push(speed)
      }
    }
  }
  console.log(
    `${values.model}, ${values.dtype}, ${streams} streams of ${TOKENS} tokens; tokens/s, median (least – most)`,
  )
  const medians = [...speeds].map(([name, list]) => {
    const sorted = list.sort((a, b) => a - b)
    const median = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
    console.log(`${name.padEnd(16)} ${median.toFixed(0)} (${sorted[0]?.toFixed(0)} – ${sorted.at(-1)?.toFixed(0)})`)
    return median
  })
  console.log(`under a schema / free: ${((medians[1] ?? Number.NaN) / (medians[0] ?? Number.NaN)).toFixed(2)}`)
} finally {
  await node.stop()
  await rm(state, { recursive: true, force: true })
}

async function tokensPerSecond(format: object): Promise<number> {
  const startedAt = performance.now()
  const replies = await Promise.all(
    Array.from({ length: streams }, async () => {
      asked += 1
      const parameters = { ...format, max_new_tokens: TOKENS, ignore_eos_token: true, do_sample: true, seed: asked }
      const reply = await node.post('/generate', { inputs: `Note ${asked}: a message about`, parameters })
      await reply.arrayBuffer()
      return Number(reply.headers.get('x-generated-tokens'))
    }),
  )
  const tokens = replies.reduce((sum, count) => sum + count, 0)
  if (tokens !== streams * TOKENS) {
    throw new Error(`${tokens} tokens came instead of ${streams * TOKENS}`)
  }
  return tokens / ((performance.now() - startedAt) / 1000)
}
