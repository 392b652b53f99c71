/**
 * Structured output: time to compile schemas, time from 16 sampled tokens to 16 masks, and the same while another grammar
 * compiles. `npx tsx bench/grammar.ts [--model DIR] [--sequences N]`; a model with a large vocabulary tells more.
 */

import { parseArgs } from 'node:util'
import { createMaskSource, type MaskSourceOptions } from '../gpu-node/grammar/grammar-mask-source.ts'
import { GrammarService } from '../gpu-node/grammar/grammar-service.ts'
import type { GrammarSpec } from '../gpu-node/grammar/grammar-spec.ts'
import { grammarVocabulary } from '../gpu-node/grammar/grammar-vocabulary.ts'
import { openCheckpoint } from '../gpu-node/model/checkpoint.ts'
import { createTokenizer } from '../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../gpu-node/text/tokenizer-files.ts'

const { values } = parseArgs({
  options: { model: { type: 'string', default: 'models/demo/base' }, sequences: { type: 'string', default: '16' } },
})
const STEPS = 200
const sequences = Number(values.sequences)
const checkpoint = await openCheckpoint(values.model, {})
await checkpoint.close()
const { vocabSize, eosTokens } = checkpoint.spec
const tokenizer = createTokenizer(await readTokenizerFiles(values.model), eosTokens)
const service = new GrammarService(grammarVocabulary(tokenizer, vocabSize, eosTokens), { compileMs: 60_000 })
// Made by `maskSource` for exactly this module.
const masks = createMaskSource(service.maskSource().options as MaskSourceOptions)
let wake: () => void = () => undefined
masks.onReady(() => wake())
let randomState = 1

const object = (properties: Record<string, object>): GrammarSpec => ({
  kind: 'json_schema',
  schema: { type: 'object', properties, required: Object.keys(properties), additionalProperties: false },
})
const text = { type: 'string' }
const SPECS: Record<string, GrammarSpec> = {
  'any JSON object': { kind: 'json_object' },
  'six plain fields': object({
    intent: { enum: ['buy', 'return', 'ask'] },
    customer: text,
    city: text,
    item: text,
    colour: text,
    quantity: { type: 'integer', minimum: 1, maximum: 999 },
  }),
  'array of objects': object({
    items: { type: 'array', items: { type: 'object', properties: { name: text, price: { type: 'number' } } } },
  }),
  'formats and a pattern': object({
    mail: { type: 'string', format: 'email' },
    when: { type: 'string', format: 'date-time' },
    code: { type: 'string', pattern: '^[A-Z]{2,10}-[0-9a-f]{4,20}$' },
  }),
  'maxLength 20': object({ name: { type: 'string', maxLength: 20 } }),
  'maxLength 100': object({ name: { type: 'string', maxLength: 100 } }),
  'regex [a-z ]{10,200}': { kind: 'regex', pattern: '[a-z ]{10,200}\\.' },
}

console.log(`${values.model}: ${vocabSize} tokens, ${sequences} sequences, ${STEPS} steps of tokens the mask allows`)
const started = performance.now()
await service.start()
console.log(`threads started in ${(performance.now() - started).toFixed(0)} ms\n`)
console.log('grammar                  compile ms   again ms   ms from tokens to all masks: p50    p95    max')
for (const [name, spec] of Object.entries(SPECS)) {
  const first = await service.acquire(spec)
  first.release()
  const before = performance.now()
  const lease = await service.acquire(spec)
  const again = performance.now() - before
  const times = await run(lease.grammarId, () => false)
  lease.release()
  const row = [name.padEnd(24), first.compileMs.toFixed(0).padStart(11), again.toFixed(1).padStart(11)]
  console.log(`${row.join('')}${spread(times)}`)
}

const lease = await service.acquire({ kind: 'json_object' })
const slow: GrammarSpec = { kind: 'regex', pattern: '([a-z ]{1,120}[A-Z ]{1,120}){1,4}x{1,9}([0-9a-f ]{100,128}){4}' }
let compiled = false
const compiling = service.acquire(slow).finally(() => {
  compiled = true
})
const meanwhile = await run(lease.grammarId, () => compiled)
const { compileMs } = await compiling
console.log(`\nwhile another grammar compiles for ${compileMs.toFixed(0)} ms:`.padEnd(47), spread(meanwhile))
await service.close()

/** Steps of all sequences until `done`, at most STEPS (or until done alone, when that is later). */
async function run(grammarId: string, done: () => boolean): Promise<number[]> {
  const ids = Array.from({ length: sequences }, (_, i) => `${grammarId}/${i}/${randomState}`)
  for (const id of ids) {
    masks.begin(id, grammarId, new Int32Array(0))
  }
  const times: number[] = []
  const running = new Set(ids)
  await allReady(running)
  for (let step = 0; step < STEPS && running.size > 0 && !done(); step++) {
    const tokens = [...running].map((id): [string, number] => [id, allowedToken(id)])
    const at = performance.now()
    for (const [id, token] of tokens) {
      masks.accept(id, token)
    }
    await allReady(running)
    times.push(performance.now() - at)
  }
  for (const id of ids) {
    masks.end(id)
  }
  return times
}

/** A sequence whose grammar has ended leaves `running`. */
async function allReady(running: Set<string>): Promise<void> {
  for (const id of running) {
    for (;;) {
      const woken = new Promise<void>((resolve) => {
        wake = resolve
      })
      const state = masks.mask(id)
      if (state.kind === 'failed') {
        throw new Error(state.message)
      }
      if (state.kind !== 'pending') {
        if (state.kind === 'ended') {
          running.delete(id)
        }
        break
      }
      await woken
    }
  }
}

/** Any token but those that end the text, so that sequences stay long. */
function allowedToken(id: string): number {
  const state = masks.mask(id)
  const mask = state.kind === 'ready' ? state.mask : new Int32Array(0)
  randomState = (Math.imul(randomState, 1_664_525) + 1_013_904_223) >>> 0
  const from = randomState % vocabSize
  for (let i = 0; i < vocabSize; i++) {
    const token = (from + i) % vocabSize
    if ((((mask[token >> 5] ?? 0) >>> (token & 31)) & 1) === 1 && !eosTokens.includes(token)) {
      return token
    }
  }
  throw new Error('the mask allows nothing')
}

function spread(times: readonly number[]): string {
  const sorted = [...times].sort((a, b) => a - b)
  const at = (q: number): string => (sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0).toFixed(2)
  return `${at(0.5).padStart(36)}${at(0.95).padStart(7)}${at(1).padStart(7)}   (${sorted.length} steps)`
}
