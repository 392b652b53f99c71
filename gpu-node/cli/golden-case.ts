/** One golden case: its runs through the real runner, alone and all in one batch, beside the reference's answers. */

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { RingletError } from '../../shared/errors.ts'
import { baseWeightsOf } from '../adapters/base-weights.ts'
import { readPeftAdapter } from '../adapters/peft.ts'
import type { ModelRunner } from '../engine/engine-types.ts'
import { openSafetensors } from '../formats/safetensors.ts'
import { type Checkpoint, openCheckpoint } from '../model/checkpoint.ts'
import type { WeightFormat } from '../model/graph/graph-form.ts'
import { packAdapter } from '../model/pack-adapter.ts'
import type { AdapterLayout } from '../model/packed-adapter.ts'
import { createOrtRunner } from '../model/runner/ort-runner.ts'
import { type Comparison, compareLogits, meanLogprob } from './golden-compare.ts'
import { type GoldenMerge, mergeGolden } from './golden-merges.ts'

/** f32 logits may differ by this much from the reference's. */
const F32_TOLERANCE = 1e-3

interface GoldenRun {
  name: string
  adapter: string | null
  prompt: number
  greedy: number[]
}

interface Golden {
  prompts: number[][]
  runs: GoldenRun[]
  merges?: GoldenMerge[]
}

export interface RunRow extends Comparison {
  run: string
  mode: 'alone' | 'batched'
  /** Greedy tokens equal to the reference's, from the first on. */
  agreed: number
  wanted: number
  /** Relative: this perplexity over the reference's, less 1, on the prompt; base runs only. */
  perplexityChange: number | undefined
  ok: boolean
}

export type GoldenRunner = ModelRunner & { readonly adapterLayout: AdapterLayout }

export interface GoldenSizes {
  maxRows: number
  maxPositions: number
  adapterSlots: number
}

export interface GoldenOptions {
  /** Merged adapters are made from their parts, not read. */
  merges?: boolean
  /** Another runner than the processor's. */
  open?: (checkpoint: Checkpoint, sizes: GoldenSizes) => Promise<GoldenRunner>
}

export interface CaseReport {
  name: string
  rows: RunRow[]
  notCovered: string[]
}

export async function runGoldenCase(
  folder: string,
  name: string,
  dtype: WeightFormat,
  {
    merges = false,
    open = (checkpoint, sizes) => createOrtRunner({ checkpoint, dtype, threads: 2, ...sizes }),
  }: GoldenOptions = {},
): Promise<CaseReport> {
  const golden = JSON.parse(await readFile(join(folder, 'golden.json'), 'utf8')) as Golden
  let checkpoint: Checkpoint
  try {
    checkpoint = await openCheckpoint(join(folder, 'base'))
  } catch (error) {
    return { name, rows: [], notCovered: [reason('the base', error)] }
  }
  const adapters = [...new Set(golden.runs.map((run) => run.adapter))].filter((adapter) => adapter !== null)
  const longest = Math.max(...golden.runs.map((run) => golden.prompts[run.prompt]!.length + run.greedy.length))
  const notCovered: string[] = []
  let runner: GoldenRunner | undefined
  try {
    runner = await open(checkpoint, {
      maxRows: golden.runs.length,
      maxPositions: Math.min(checkpoint.spec.maxPositions, longest + 1),
      adapterSlots: adapters.length,
    })
    const made = merges ? (golden.merges ?? []) : []
    const slots = await loadAdapters(folder, adapters, made, checkpoint, runner, notCovered)
    const runs = golden.runs.filter((run) => run.adapter === null || slots.has(run.adapter))
    const reference = await openSafetensors(join(folder, 'logits.safetensors'))
    const rows: RunRow[] = []
    const references = new Map<string, Float32Array>()
    for (const run of runs) {
      const slot = run.adapter === null ? undefined : slots.get(run.adapter)
      const wanted = await reference.read(run.name)
      references.set(run.name, wanted)
      rows.push(runAlone(runner, golden.prompts[run.prompt]!, run, slot, wanted, dtype))
    }
    rows.push(...runBatched(runner, golden, runs, slots, references, dtype))
    await reference.close()
    return { name, rows, notCovered }
  } catch (error) {
    return { name, rows: [], notCovered: [...notCovered, reason('its runs', error)] }
  } finally {
    runner?.dispose()
    await checkpoint.close()
  }
}

async function loadAdapters(
  folder: string,
  names: readonly string[],
  merges: readonly GoldenMerge[],
  checkpoint: Checkpoint,
  runner: GoldenRunner,
  notCovered: string[],
): Promise<Map<string, number>> {
  const slots = new Map<string, number>()
  const read = async (directory: string) =>
    (await readPeftAdapter(directory, checkpoint.spec, { baseWeights: baseWeightsOf(checkpoint) })).adapter
  for (const name of names) {
    try {
      const directory = join(folder, 'adapters', name)
      if (!existsSync(directory)) {
        throw new Error(`no folder ${directory}`)
      }
      const merge = merges.find((candidate) => candidate.adapter === name)
      const adapter = merge === undefined ? await read(directory) : await mergeGolden(folder, merge, read)
      runner.loadAdapter(slots.size, await packAdapter(adapter, checkpoint, runner.adapterLayout))
      slots.set(name, slots.size)
    } catch (error) {
      notCovered.push(reason(`adapter ${name}`, error))
    }
  }
  return slots
}

function reason(what: string, error: unknown): string {
  return `${what}: ${error instanceof RingletError ? `${error.code}: ` : ''}${(error as Error).message}`
}

function runAlone(
  runner: GoldenRunner,
  prompt: readonly number[],
  run: GoldenRun,
  adapterSlot: number | undefined,
  wanted: Float32Array,
  dtype: WeightFormat,
): RunRow {
  const tokens = Int32Array.from(prompt)
  const logits = runner.prefill({ kvRow: 0, tokens, startPosition: 0, adapterSlot, logits: 'all' }).slice()
  const { vocabSize } = runner
  const comparison = compareLogits(logits.subarray(logits.length - wanted.length), wanted)
  let next = argmax(logits.subarray(logits.length - vocabSize))
  let agreed = 0
  while (agreed < run.greedy.length && next === run.greedy[agreed]) {
    const positions = Int32Array.of(prompt.length + agreed)
    agreed++
    // The last token's own successor is not asked for.
    if (agreed < run.greedy.length) {
      next = argmax(runner.decode({ tokens: Int32Array.of(next), positions, adapterSlots: [adapterSlot] }))
    }
  }
  const ok = passes(comparison, agreed, run, dtype)
  const whole = wanted.length === logits.length && prompt.length > 1
  const perplexityChange = whole
    ? Math.exp(meanLogprob(wanted, prompt, vocabSize) - meanLogprob(logits, prompt, vocabSize)) - 1
    : undefined
  return { run: run.name, mode: 'alone', agreed, wanted: run.greedy.length, perplexityChange, ok, ...comparison }
}

/** Prompt tokens that the batched pass decodes instead of prefilling, so that its logits meet the reference's. */
const BATCHED_TAIL = 4

/** Every run in a row of its own; each step decodes all rows, fed with the reference's tokens. */
function runBatched(
  runner: GoldenRunner,
  golden: Golden,
  runs: readonly GoldenRun[],
  slots: ReadonlyMap<string, number>,
  references: ReadonlyMap<string, Float32Array>,
  dtype: WeightFormat,
): RunRow[] {
  const adapterSlots = runs.map((run) => (run.adapter === null ? undefined : slots.get(run.adapter)))
  const { vocabSize } = runner
  const sequences = runs.map((run) => [...golden.prompts[run.prompt]!, ...run.greedy])
  const prompts = runs.map((run) => golden.prompts[run.prompt]!.length)
  const starts = prompts.map((length) => Math.max(0, length - BATCHED_TAIL))
  for (const [kvRow, start] of starts.entries()) {
    // A row begins with a prefill, if only of the token that is then decoded again.
    const tokens = Int32Array.from(sequences[kvRow]!.slice(0, Math.max(1, start)))
    const promptPositions = prompts[kvRow]!
    const adapterSlot = adapterSlots[kvRow]
    runner.prefill({ kvRow, tokens, startPosition: 0, adapterSlot, logits: 'none', promptPositions })
  }
  const agreed = runs.map(() => 0)
  const comparisons = runs.map((): Comparison => ({ maxDifference: 0, relative: 0 }))
  const steps = Math.max(...sequences.map((tokens, row) => tokens.length - starts[row]!))
  for (let step = 0; step < steps; step++) {
    // Rows that are done repeat their last token at its place: they stay in the batch and change nothing.
    const positions = Int32Array.from(sequences, (tokens, row) => Math.min(starts[row]! + step, tokens.length - 1))
    const tokens = Int32Array.from(sequences, (it, row) => it[positions[row]!]!)
    const logits = runner.decode({ tokens, positions, adapterSlots })
    for (const [row, run] of runs.entries()) {
      const position = positions[row]!
      const mine = logits.subarray(row * vocabSize, (row + 1) * vocabSize)
      const reference = references.get(run.name)!
      // The reference's last position is the prompt's last.
      const at = reference.length / vocabSize - prompts[row]! + position
      if (position < prompts[row]! && at >= 0) {
        const comparison = compareLogits(mine, reference.subarray(at * vocabSize, (at + 1) * vocabSize))
        comparisons[row] = worse(comparisons[row]!, comparison)
      }
      const next = position + 1
      if (next === prompts[row]! + agreed[row]! && argmax(mine) === sequences[row]![next]) {
        agreed[row]!++
      }
    }
  }
  return runs.map((run, row) => {
    const comparison = comparisons[row]!
    const ok = passes(comparison, agreed[row]!, run, dtype)
    const base = { run: run.name, mode: 'batched' as const, agreed: agreed[row]!, wanted: run.greedy.length }
    return { ...base, ...comparison, perplexityChange: undefined, ok }
  })
}

/** The quantised formats have no tolerance, but must give numbers. */
function passes({ maxDifference }: Comparison, agreed: number, run: GoldenRun, dtype: WeightFormat): boolean {
  return dtype === 'f32'
    ? maxDifference <= F32_TOLERANCE && agreed === run.greedy.length
    : Number.isFinite(maxDifference)
}

function worse(a: Comparison, b: Comparison): Comparison {
  return a.maxDifference >= b.maxDifference ? a : b
}

function argmax(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) {
    if (logits[i]! > logits[best]!) {
      best = i
    }
  }
  return best
}
