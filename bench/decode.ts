/**
 * Decode steps of the runner: ms and tokens/s by batch size, without adapters, with one and with all different, beside a
 * bare loop over the same graph. `npm run bench:decode -- [--dtype int8|int4|f32] [--shape 135m|0.5b] [--rounds N]`
 */

import { parseArgs } from 'node:util'
import type { WeightFormat } from '../gpu-node/model/graph/graph-form.ts'
import { packAdapter } from '../gpu-node/model/pack-adapter.ts'
import { createOrtRunner, type OrtRunner } from '../gpu-node/model/runner/ort-runner.ts'
import { createBareLoop } from './bare-loop.ts'
import { interleave, type Timing } from './interleave.ts'
import { randomAdapter, randomBase, SHAPE_05B, SHAPE_135M } from './random-base.ts'
import { createBandwidthProbe, PROBE_BYTES } from './read-bandwidth.ts'

const { values } = parseArgs({
  options: {
    dtype: { type: 'string', default: 'int8' },
    shape: { type: 'string', default: '135m' },
    rounds: { type: 'string', default: '15' },
    threads: { type: 'string', default: '2' },
    rank: { type: 'string', default: '16' },
    batches: { type: 'string', default: '1,4,8,16,32' },
  },
})
const dtype = values.dtype as WeightFormat
const shape = values.shape === '0.5b' ? SHAPE_05B : SHAPE_135M
const threads = Number(values.threads)
const batches = values.batches.split(',').map(Number)
const maxRows = Math.max(...batches)
const POSITION = 511

const source = randomBase(shape)
const runner = await createOrtRunner({
  checkpoint: source,
  dtype,
  threads,
  maxRows,
  maxPositions: shape.positions,
  adapterSlots: maxRows,
})
runner.warmUp()
let adapterBytes = 0
for (let slot = 0; slot < maxRows; slot++) {
  const adapter = randomAdapter(source.decoder, Number(values.rank), slot + 1)
  const packed = await packAdapter(adapter, source, runner.adapterLayout)
  adapterBytes = packed.bytes
  runner.loadAdapter(slot, packed)
}
const bare = await createBareLoop({
  source,
  dtype,
  threads,
  maxRows,
  maxPositions: shape.positions,
  position: POSITION,
})
const probe = createBandwidthProbe(threads)
const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1)
console.log(`${values.shape} shape, ${dtype}, ${threads} threads, ${POSITION + 1} positions, rank ${values.rank}`)
console.log(
  `weights ${megabytes(runner.weightBytes)} MB, an adapter ${megabytes(adapterBytes)} MB (${runner.adapterLayout})\n`,
)
console.log('batch  adapters        ms/step (min)   spread   tokens/s')
for (const rows of batches) {
  report(rows, interleave(stepsOf(runner, rows), Number(values.rounds)))
}
runner.dispose()

function stepsOf(on: OrtRunner, rows: number): Record<string, () => void> {
  const tokens = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % shape.vocab)
  const positions = new Int32Array(rows).fill(POSITION)
  const step = (adapterSlots: (number | undefined)[]) => () => {
    on.decode({ tokens, positions, adapterSlots })
  }
  return {
    bare: () => bare(rows),
    // In turns with the steps: what a machine's memory gives changes within minutes.
    ...(rows === 1 ? { 'memory read': probe } : {}),
    none: step(Array.from({ length: rows }, () => undefined)),
    one: step(Array.from({ length: rows }, () => 0)),
    ...(rows === 1 ? {} : { different: step(Array.from({ length: rows }, (_, row) => row)) }),
    ...(rows === 1
      ? {}
      : { 'one of the rows': step(Array.from({ length: rows }, (_, row) => (row === 0 ? 0 : undefined))) }),
  }
}

function report(rows: number, timings: Record<string, Timing>): void {
  for (const [name, { medianMs, minMs, spread }] of Object.entries(timings)) {
    if (name === 'memory read') {
      continue
    }
    const ms = `${medianMs.toFixed(2)} (${minMs.toFixed(2)})`.padStart(15)
    const rate = ((1000 * rows) / medianMs).toFixed(0).padStart(8)
    console.log(
      `${String(rows).padStart(5)}  ${name.padEnd(16)}${ms}   ±${(100 * spread).toFixed(0).padStart(3)} %  ${rate}`,
    )
  }
  const { bare: bareTiming, none, one, different, 'one of the rows': some, 'memory read': read } = timings
  const ratio = (a: Timing, b: Timing): string =>
    `${(a.medianMs / b.medianMs).toFixed(2)} (${(a.minMs / b.minMs).toFixed(2)})`
  console.log(`       runner / bare ${ratio(none!, bareTiming!)}; none / one adapter ${ratio(none!, one!)}`)
  if (different !== undefined) {
    console.log(`       one / all different ${ratio(one!, different)}; none / all different ${ratio(none!, different)}`)
  }
  if (some !== undefined) {
    console.log(`       none / one of the rows ${ratio(none!, some)}`)
  }
  if (read !== undefined) {
    const gigabytes = (ms: number): string => (PROBE_BYTES / ms / 1e6).toFixed(1)
    const reached = (of: 'medianMs' | 'minMs'): string =>
      `${((100 * runner.weightBytes * read[of]) / PROBE_BYTES / none![of]).toFixed(0)} %`
    console.log(
      `       memory read at ${gigabytes(read.medianMs)} GB/s (${gigabytes(read.minMs)}), spread ` +
        `±${(100 * read.spread).toFixed(0)} %; of the floor ${reached('medianMs')} (${reached('minMs')}) reached`,
    )
  }
}
