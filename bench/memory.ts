/**
 * Resident memory of a node process beside its weights, the KV it touched and its adapters; what each further kind of session
 * adds, in parts of the weights. `npx tsx bench/memory.ts [--shape 135m|0.5b] [--dtype int8|int4|f32]`; Linux.
 *
 * Random weights on disk in bfloat16, as published. What any node takes (Node.js, ONNX Runtime, worker threads) is measured
 * on the embedded demo model and told apart: ratios come with it and without it.
 */

import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { openCheckpoint } from '../gpu-node/model/checkpoint.ts'
import type { WeightFormat } from '../gpu-node/model/graph/graph-form.ts'
import { planWeights } from '../gpu-node/model/graph/weight-plan.ts'
import { installKernels } from '../gpu-node/model/runner/kernels.ts'
import { OrtEnvironment } from '../gpu-node/ort/environment.ts'
import { type BenchNode, localAdapter, startBenchNode } from './bench-node.ts'
import { describeMachine } from './machine.ts'
import { SHAPE_05B, SHAPE_135M } from './random-base.ts'
import { ALL_LINEAR, type RandomAdapterOptions, writeRandomAdapter, writeRandomBase } from './random-files.ts'

const GOAL = 1.3
const SEQUENCES = 16
const TOKENS = 32
/** 240 tokens or so. */
const PROMPT = 'three red lamps for Berlin, please; '.repeat(16)
const { values } = parseArgs({
  options: {
    shape: { type: 'string', default: '135m' },
    dtype: { type: 'string', default: 'int8' },
    threads: { type: 'string', default: '2' },
  },
})
const dtype = values.dtype as WeightFormat
const shape = values.shape === '0.5b' ? SHAPE_05B : SHAPE_135M
const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(0).padStart(6)} MB`

console.log(describeMachine())
const folder = await mkdtemp(join(tmpdir(), 'ringlet-memory-'))
try {
  const runtime = await runtimeAlone()
  await writeRandomBase(join(folder, 'base'), shape)
  await writeAdapters()
  const first = await withNode(baseFlags(), async (node) => {
    await whenKept(join(folder, 'state'))
    return node.memory('VmHWM')
  })
  await withNode(baseFlags(), (node) => report(node, runtime, first))
} finally {
  await rm(folder, { recursive: true, force: true })
}

/** A node on the demo model after a request with and without an adapter, less that model. */
async function runtimeAlone(): Promise<number> {
  const demo = 'models/demo'
  const flags = ['--model', `${demo}/base`, '--adapter-root', `${demo}/adapters`, '--max-positions', '256']
  return withNode([...flags, '--state', join(folder, 'demo-state')], async (node) => {
    await node.generate({ prompt: 'hello', tokens: 8 })
    await node.generate({ adapter: 'pirate', prompt: 'hello', tokens: 8 })
    await whenKept(join(folder, 'demo-state'))
    return (await node.memory('VmRSS')) - (await folderBytes(join(folder, 'demo-state', 'weights')))
  })
}

function baseFlags(): string[] {
  const places = ['--model', join(folder, 'base'), '--adapter-root', join(folder, 'adapters')]
  const sizes = ['--max-sequences', String(SEQUENCES), '--max-positions', String(shape.positions)]
  return [...places, ...sizes, '--state', join(folder, 'state'), '--adapter-ram', '1GiB']
}

async function withNode<T>(flags: string[], use: (node: BenchNode) => Promise<T>): Promise<T> {
  const common = ['--dtype', dtype, '--threads', values.threads, '--prefix-cache', '0']
  const node = await startBenchNode([...common, ...flags])
  try {
    return await use(node)
  } finally {
    await node.stop()
  }
}

async function report(node: BenchNode, runtime: number, firstPeak: number): Promise<void> {
  const startPeak = await node.memory('VmHWM')
  await node.resetPeak()
  const names = Array.from({ length: SEQUENCES }, (_, i) => `plain-${i}`)
  for (const name of names) {
    await node.post('/adapters/prefetch', {}, { action: 'prefetch', adapter: localAdapter(name) })
  }
  const loadedPeak = await node.memory('VmHWM')
  const replies = await Promise.all(names.map((adapter) => node.generate({ adapter, prompt: PROMPT, tokens: TOKENS })))
  const peak = await node.memory('VmHWM')
  const positions = replies.reduce((sum, reply) => sum + reply.promptTokens + reply.tokens, 0)
  const weights = await weightBytes()
  const kv = positions * (await kvBytesAPosition())
  const adapters = await adapterBytes(node)
  const needed = weights + kv + adapters
  const ratio = (bytes: number) => (bytes / needed).toFixed(2)
  console.log(
    `${values.shape} shape, ${dtype}, ${values.threads} threads; ${SEQUENCES} sequences of as many rank-16 adapters on all ` +
      `linear layers at once, ${positions} positions in all; no prefix cache`,
  )
  console.log(`weights and embeddings          ${megabytes(weights)}`)
  console.log(`KV touched                      ${megabytes(kv)}`)
  console.log(`adapters, packed                ${megabytes(adapters)}`)
  console.log(`any node (demo model)           ${megabytes(runtime)}`)
  console.log(`peak, first start (quantising)  ${megabytes(firstPeak)}`)
  console.log(`peak, later start               ${megabytes(startPeak)}`)
  console.log(`peak, adapters in RAM           ${megabytes(loadedPeak)}`)
  console.log(
    `peak, serving                   ${megabytes(peak)}   ${ratio(peak)} × (weights + KV + adapters); ` +
      `less any node's ${ratio(peak - runtime)}; goal ≤ ${GOAL}`,
  )
  await reportSessions(node, weights)
}

/** Kinds of work whose graphs differ; a session that copied the weights would add 1.00 of them. */
async function reportSessions(node: BenchNode, weights: number): Promise<void> {
  const kinds: Record<string, () => Promise<unknown>> = {
    'base rows': () => node.generate({ prompt: PROMPT, tokens: 4 }),
    embeddings: () => node.post('/embed', { inputs: PROMPT }, { action: 'embed' }),
    'an adapter with DoRA': () => node.generate({ adapter: 'dora', prompt: PROMPT, tokens: 4 }),
    'an adapter of the head': () => node.generate({ adapter: 'head', prompt: PROMPT, tokens: 4 }),
    'both, and plain ones, at once': () =>
      Promise.all(['dora', 'head', 'plain-0'].map((adapter) => node.generate({ adapter, prompt: PROMPT, tokens: 8 }))),
  }
  console.log('\nsession for                     adds, beyond its adapter   of the weights')
  let total = 0
  for (const [name, work] of Object.entries(kinds)) {
    const before = (await node.memory('RssAnon')) - (await adapterBytes(node))
    await work()
    const added = (await node.memory('RssAnon')) - (await adapterBytes(node)) - before
    total += added
    console.log(`${name.padEnd(32)}${megabytes(added)}   ${(added / weights).toFixed(2).padStart(24)}`)
  }
  console.log(`${'all of them'.padEnd(32)}${megabytes(total)}   ${(total / weights).toFixed(2).padStart(24)}`)
}

async function writeAdapters(): Promise<void> {
  const write = (name: string, options: RandomAdapterOptions) =>
    writeRandomAdapter(join(folder, 'adapters', name), shape, options)
  for (let i = 0; i < SEQUENCES; i++) {
    await write(`plain-${i}`, { rank: 16, targets: ALL_LINEAR, seed: i })
  }
  await write('dora', { rank: 16, targets: ALL_LINEAR, seed: 100, dora: true })
  await write('head', { rank: 16, targets: ['q_proj', 'lm_head'], seed: 101 })
}

/** What the node keeps for its next start, the token embeddings with it; f32 is not kept: as computed. */
async function weightBytes(): Promise<number> {
  if (dtype === 'f32') {
    return 2 * (await stat(join(folder, 'base', 'model.safetensors'))).size + shape.vocab * shape.hidden * 2
  }
  return folderBytes(join(folder, 'state', 'weights'))
}

/** A first start serves before its weights are on the disk, and gives them up when it is stopped before. */
async function whenKept(state: string): Promise<void> {
  while (dtype !== 'f32' && !(await readdir(join(state, 'weights'))).every((name) => name.endsWith('.safetensors'))) {
    await setTimeout(100)
  }
}

async function kvBytesAPosition(): Promise<number> {
  const checkpoint = await openCheckpoint(join(folder, 'base'), { maxPositions: 1 })
  const { decoder } = checkpoint
  await checkpoint.close()
  const { kv } = installKernels(new OrtEnvironment(1).library, decoder, planWeights(decoder), dtype)
  return 2 * shape.layers * shape.kvHeads * shape.headSize * (kv === 'f16' ? 2 : 4)
}

async function adapterBytes(node: BenchNode): Promise<number> {
  const held = (await node.adapters()).filter(({ tier }) => tier === 'engine' || tier === 'ram')
  return held.reduce((sum, { bytes }) => sum + bytes, 0)
}

async function folderBytes(path: string): Promise<number> {
  const names = await readdir(path)
  const sizes = await Promise.all(names.map(async (name) => (await stat(join(path, name))).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}
