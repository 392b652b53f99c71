/** The `ModelRunner` over ONNX Runtime: turns prefill chunks and decode batches into runs of the session that fits them. */

import { createHash } from 'node:crypto'
import { RingletError } from '../../../shared/errors.ts'
import type {
  DecodeBatch,
  KvRange,
  KvSnapshot,
  MixedBatch,
  MixedRuns,
  ModelRunner,
  PrefillChunk,
} from '../../engine/engine-types.ts'
import { OrtBinding } from '../../ort/binding.ts'
import { OrtEnvironment } from '../../ort/environment.ts'
import { formKey, type GraphForm, type KernelKv, type WeightFormat } from '../graph/graph-form.ts'
import { planWeights, type WeightPlan } from '../graph/weight-plan.ts'
import type { AdapterLayout, PackedAdapter } from '../packed-adapter.ts'
import { type WeightCache, weightCache } from '../weight-cache.ts'
import { AdapterSlots } from './adapter-slots.ts'
import { BASE_FORM, type DecodeRun, mixedForm, planDecode, type RunForm, soleForm } from './choose-form.ts'
import { blocksEnd, KernelKvCache } from './kernel-kv-cache.ts'
import { installKernels, type Kernels, NO_KERNELS } from './kernels.ts'
import { GroupQueryKvCache, type KvCache } from './kv-cache.ts'
import { orderMixed } from './mixed-order.ts'
import { RopeChoice } from './rope-choice.ts'
import { RowExtras } from './row-extras.ts'
import { SavedHeads } from './saved-heads.ts'
import { SessionPool } from './session-pool.ts'
import { StepIo, type StepShape } from './step-io.ts'
import { TokenEmbedding } from './token-embedding.ts'
import type { WeightSource } from './weight-source.ts'
import { loadWeights, type Progress, type WeightStore } from './weight-store.ts'

export interface OrtRunnerOptions {
  checkpoint: WeightSource
  dtype: WeightFormat
  /** Of the pool that all sessions of the process share. */
  threads: number
  maxRows: number
  maxPositions: number
  adapterSlots: number
  /** Where quantised weights are kept for the next start, and what tells this base from others. */
  weightCache?: { folder: string; baseDigest: string; stamp: string; onMiss?: (why: string) => void }
  /** `false`: ONNX Runtime's own operators alone, as on machines without the kernels. */
  kernels?: boolean
  onProgress?: Progress
}

export async function createOrtRunner(options: OrtRunnerOptions): Promise<OrtRunner> {
  const { decoder } = options.checkpoint
  if (options.maxPositions > decoder.maxPositions) {
    const limit = `the model has ${decoder.maxPositions}`
    throw new RingletError('field_invalid', `${options.maxPositions} positions are asked for; ${limit}`)
  }
  const environment = new OrtEnvironment(options.threads)
  const plan = planWeights(decoder)
  const kernels =
    options.kernels === false ? NO_KERNELS : installKernels(environment.library, decoder, plan, options.dtype)
  const { embedding: table, ...weights } = await loadWeights(environment, options.checkpoint, plan, options.dtype, {
    cache: openCache(options, plan, kernels),
    tiled: kernels.tiled,
    onProgress: options.onProgress,
  })
  const embedding = await TokenEmbedding.load(options.checkpoint, table)
  return new OrtRunner(options, { environment, plan, weights, embedding, kernels })
}

/** Weights in f32 are read from the checkpoint as fast as from a copy. */
function openCache(
  { weightCache: place, dtype }: OrtRunnerOptions,
  plan: WeightPlan,
  { tiled }: Kernels,
): WeightCache | undefined {
  if (place === undefined || dtype === 'f32') {
    return undefined
  }
  const { folder, baseDigest, stamp, onMiss } = place
  const layout = createHash('sha256')
    .update(JSON.stringify([plan, tiled]))
    .digest('hex')
  return weightCache(folder, { baseDigest, stamp, format: dtype, layout }, onMiss)
}

interface RunnerParts {
  environment: OrtEnvironment
  plan: WeightPlan
  weights: Omit<WeightStore, 'embedding'>
  embedding: TokenEmbedding
  kernels: Kernels
}

export class OrtRunner implements ModelRunner {
  readonly maxRows: number
  readonly maxPositions: number
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly adapterSlots: number
  /** Our own attention kernel takes a step's tokens in any order of rows and positions; ONNX Runtime's takes whole rows. */
  readonly mixed?: MixedRuns
  /** How adapters are to be packed. */
  readonly adapterLayout: AdapterLayout
  /** Ends when the weights are on the disk for the next start, or cannot be. */
  readonly filed: Promise<void>
  readonly #dtype: WeightFormat
  readonly #parts: RunnerParts
  readonly #sessions: SessionPool
  readonly #kernelKv: KernelKv | undefined
  readonly #kv: KvCache
  readonly #adapters: AdapterSlots
  readonly #heads: SavedHeads
  readonly #rope: RopeChoice
  readonly #rowExtras: RowExtras
  readonly #decodeIo: StepIo
  readonly #decodeBindings = new Map<string, OrtBinding>()
  /** Of the last decode step; the next one mostly has the same adapters. */
  #planned: { adapterSlots: (number | undefined)[]; runs: DecodeRun[] } | undefined
  /** Grows with the largest chunk seen. */
  #prefillIo: StepIo
  readonly #prefillBindings = new Map<string, OrtBinding>()
  #settling: NodeJS.Immediate | undefined

  constructor(options: OrtRunnerOptions, parts: RunnerParts) {
    const { decoder } = options.checkpoint
    const { environment, plan, weights, kernels } = parts
    this.maxRows = options.maxRows
    this.maxPositions = options.maxPositions
    this.vocabSize = decoder.vocabSize
    this.hiddenSize = decoder.hiddenSize
    this.adapterSlots = options.adapterSlots
    this.adapterLayout = kernels.adapterLayout
    this.#dtype = options.dtype
    this.#parts = parts
    this.#sessions = new SessionPool(
      environment,
      decoder,
      plan,
      weights.initializers,
      kernels.domain === undefined ? [] : [kernels.domain],
    )
    this.#kernelKv =
      kernels.kv === undefined ? undefined : { format: kernels.kv, positions: blocksEnd(options.maxPositions) }
    this.#kv =
      this.#kernelKv === undefined
        ? new GroupQueryKvCache(environment, decoder, options.maxRows, options.maxPositions)
        : new KernelKvCache(environment, decoder, this.#kernelKv, options.maxRows)
    this.#adapters = new AdapterSlots(environment, plan, options.adapterSlots, this.adapterLayout)
    this.#rowExtras = new RowExtras(environment, plan, options.maxRows)
    this.#heads = new SavedHeads(environment, decoder)
    this.#rope = new RopeChoice(decoder, options.maxRows)
    this.#decodeIo = this.#createIo({ tokens: options.maxRows, logits: options.maxRows })
    this.#prefillIo = this.#createIo({ tokens: 1, logits: 1 })
    this.#settleWeights()
    this.filed = this.#moveEmbedding()
    if (this.#kernelKv !== undefined) {
      this.mixed = {
        takes: (adapterSlots) => this.#mixedForm(adapterSlots) !== undefined,
        run: (batch) => this.#runMixed(batch),
      }
    }
  }

  /** What a step reads of the base, in the layout of the checkpoint's format; the kernels' own layout is as large. */
  get weightBytes(): number {
    return this.#parts.weights.bytes
  }

  /** Makes the sessions that steps mostly need, so that no sequence waits for them; rarer forms come when first used. */
  warmUp(): void {
    const base = this.#form(BASE_FORM)
    this.#sessions.get(base)
    if (this.adapterLayout !== 'graph') {
      this.#sessions.get({ ...base, lora: 'kernel' })
    }
  }

  prefill(chunk: PrefillChunk): Float32Array {
    const logits = { none: 0, last: 1, all: chunk.tokens.length }[chunk.logits]
    const io = this.#runChunk(chunk, logits, logits)
    return io.logits.subarray(0, logits * this.vocabSize)
  }

  hiddenStates(chunk: Omit<PrefillChunk, 'logits'>): Float32Array {
    const io = this.#runChunk(chunk, chunk.tokens.length, 0)
    return io.hidden.subarray(0, chunk.tokens.length * this.hiddenSize)
  }

  decode({ tokens, positions, adapterSlots }: DecodeBatch): Float32Array {
    const rows = tokens.length
    if (rows < 1 || rows > this.maxRows) {
      throw new RingletError('internal', `a decode batch of ${rows} rows; the KV cache has ${this.maxRows}`)
    }
    for (let row = 0; row < rows; row++) {
      this.#enter(this.#decodeIo, row, row, tokens[row]!, positions[row]!, adapterSlots[row])
      this.#decodeIo.setLastPosition(row, positions[row]!)
    }
    for (const run of this.#planFor(adapterSlots)) {
      this.#decodeRows(run, positions)
    }
    this.#runSavedHeads(adapterSlots)
    return this.#decodeIo.logits.subarray(0, rows * this.vocabSize)
  }

  kvKind(promptPositions: number): string {
    return this.#rope.isLong(promptPositions) ? 'long' : 'short'
  }

  copyRow(from: number, to: number, positions: number): void {
    this.#kv.copyRow(from, to, positions)
    this.#rope.copyRow(from, to)
  }

  saveKv(range: KvRange): KvSnapshot {
    return this.#kv.save(range)
  }

  restoreKv(kvRow: number, snapshot: KvSnapshot, end: number): void {
    this.#kv.restore(kvRow, snapshot, end)
  }

  loadAdapter(adapterSlot: number, adapter: PackedAdapter): void {
    this.#planned = undefined
    this.#adapters.load(adapterSlot, adapter)
  }

  unloadAdapter(adapterSlot: number): void {
    this.#planned = undefined
    this.#adapters.unload(adapterSlot)
  }

  dispose(): void {
    clearImmediate(this.#settling)
    for (const binding of [...this.#decodeBindings.values(), ...this.#prefillBindings.values()]) {
      binding.dispose()
    }
    this.#decodeBindings.clear()
    this.#prefillBindings.clear()
    this.#decodeIo.dispose()
    this.#prefillIo.dispose()
    this.#heads.dispose()
    this.#rowExtras.dispose()
    this.#adapters.dispose()
    this.#kv.dispose()
    this.#sessions.dispose()
    this.#parts.weights.dispose()
    this.#parts.environment.dispose()
  }

  /** A piece at a time, between whatever else this thread does. Damaged weights end it. */
  #settleWeights(): void {
    this.#settling = setImmediate(() => {
      if (this.#parts.weights.settle()) {
        this.#settleWeights()
      }
    })
  }

  /** To the file, once it is there. */
  async #moveEmbedding(): Promise<void> {
    const table = await this.#parts.weights.filed
    if (table !== undefined) {
      this.#parts.embedding.moveTo(table)
    }
  }

  #runChunk(chunk: Omit<PrefillChunk, 'logits'>, hidden: number, logits: number): StepIo {
    const { kvRow, tokens, startPosition, adapterSlot } = chunk
    const count = tokens.length
    if (count === 0 || kvRow < 0 || kvRow >= this.maxRows) {
      throw new RingletError('internal', `a chunk of ${count} tokens for row ${kvRow} of ${this.maxRows}`)
    }
    this.#rope.choose(kvRow, chunk.promptPositions ?? startPosition + count)
    const io = this.#prefillIoFor(count, logits)
    for (let i = 0; i < count; i++) {
      this.#enter(io, i, kvRow, tokens[i]!, startPosition + i, adapterSlot)
    }
    io.setLastPosition(0, startPosition + count - 1)
    const shape = { first: 0, rows: 1, tokens: count, hidden, logits }
    const adapter = adapterSlot === undefined ? undefined : this.#adapters.get(adapterSlot)
    const form = this.#form(soleForm(adapter?.traits))
    const binding = this.#binding(this.#prefillBindings, formKey(form), form)
    io.bind(binding, shape, form)
    this.#kv.bind(binding, kvRow, 1)
    io.prepare(shape, startPosition + count)
    if (adapterSlot !== undefined) {
      this.#adapters.bind(binding, adapterSlot)
    }
    if (adapter?.traits.kernel) {
      io.setLoraRows(shape, () => adapter.address)
      io.bindLoraRows(binding, shape, form.head)
    }
    binding.run()
    if (adapter?.savedHead !== undefined && logits > 0) {
      this.#heads.run(adapter.savedHead, logits, io.hidden.subarray((hidden - logits) * this.hiddenSize), io.logits)
    }
    return io
  }

  #runMixed({ decode, chunks }: MixedBatch): Float32Array {
    for (const { kvRow, startPosition, tokens, promptPositions } of chunks) {
      this.#rope.choose(kvRow, promptPositions ?? startPosition + tokens.length)
    }
    const { tokens, logits } = orderMixed(decode, chunks)
    const adapterSlots = tokens.map(({ adapterSlot }) => adapterSlot)
    const runForm = this.#mixedForm(adapterSlots)
    if (runForm === undefined) {
      throw new RingletError('internal', 'a mixed run with an adapter that needs a run of its own')
    }
    const io = this.#prefillIoFor(tokens.length, logits)
    for (const [i, { kvRow, token, position, adapterSlot }] of tokens.entries()) {
      this.#enter(io, i, kvRow, token, position, adapterSlot)
    }
    const shape = { first: 0, rows: tokens.length, tokens: 1, hidden: logits, logits }
    const form = this.#form(runForm)
    const binding = this.#binding(this.#prefillBindings, formKey(form), form)
    io.bind(binding, shape, form)
    this.#kv.bind(binding, 0, this.maxRows)
    io.prepare(shape, 0)
    if (form.lora === 'kernel') {
      io.setLoraRows(shape, (i) => this.#kernelAddress(adapterSlots[i]))
      io.bindLoraRows(binding, shape, form.head)
    }
    binding.run()
    return io.logits.subarray(0, logits * this.vocabSize)
  }

  /** `undefined`: some adapter needs runs of its own. */
  #mixedForm(adapterSlots: readonly (number | undefined)[]): RunForm | undefined {
    const adapters = adapterSlots.flatMap((slot) => (slot === undefined ? [] : this.#adapters.get(slot)))
    return adapters.some(({ savedHead }) => savedHead !== undefined)
      ? undefined
      : mixedForm(adapters.map(({ traits }) => traits))
  }

  #kernelAddress(adapterSlot: number | undefined): bigint {
    return adapterSlot === undefined ? 0n : this.#adapters.get(adapterSlot).address
  }

  #planFor(adapterSlots: DecodeBatch['adapterSlots']): DecodeRun[] {
    const planned = this.#planned
    if (planned !== undefined && isSame(planned.adapterSlots, adapterSlots)) {
      return planned.runs
    }
    const runs = planDecode(adapterSlots, (slot) => this.#adapters.get(slot).traits)
    const shared = runs.find((run) => run.form.lora === 'kernel')
    if (shared !== undefined) {
      const rows = adapterSlots.map((slot) => (slot === undefined ? undefined : this.#adapters.get(slot)))
      const address = (row: number): bigint => (rows[row]?.traits.kernel ? rows[row].address : 0n)
      this.#decodeIo.setLoraRows(decodeShape(shared), address)
      if (shared.form.extras) {
        this.#rowExtras.fill(rows.map((adapter) => (adapter?.traits.kernel ? adapter : undefined)))
      }
    }
    this.#planned = { adapterSlots: [...adapterSlots], runs }
    return runs
  }

  #decodeRows(run: DecodeRun, positions: Int32Array): void {
    const { first, count, adapterSlot } = run
    const form = this.#form(run.form)
    const key = `${formKey(form)}/${first}/${count}`
    const known = this.#decodeBindings.get(key)
    const binding = known ?? this.#binding(this.#decodeBindings, key, form)
    if (known === undefined) {
      const shape = decodeShape(run)
      this.#decodeIo.bind(binding, shape, form)
      this.#kv.bind(binding, first, count)
      if (form.lora === 'kernel') {
        this.#decodeIo.bindLoraRows(binding, shape, form.head)
      }
      if (form.lora === 'kernel' && form.extras) {
        this.#rowExtras.bind(binding, count, form.head)
      }
    }
    if (adapterSlot !== undefined) {
      this.#adapters.bind(binding, adapterSlot)
    }
    let totalPositions = 0
    for (let row = first; row < first + count; row++) {
      totalPositions = Math.max(totalPositions, positions[row]! + 1)
    }
    this.#decodeIo.prepare(decodeShape(run), totalPositions)
    binding.run()
  }

  #runSavedHeads(adapterSlots: DecodeBatch['adapterSlots']): void {
    for (let row = 0; row < adapterSlots.length; row++) {
      const slot = adapterSlots[row]
      const head = slot === undefined ? undefined : this.#adapters.get(slot).savedHead
      if (head !== undefined) {
        const hidden = this.#decodeIo.hidden.subarray(row * this.hiddenSize)
        this.#heads.run(head, 1, hidden, this.#decodeIo.logits.subarray(row * this.vocabSize))
      }
    }
  }

  /** Token `i` of the step: its embedding, and its row of the rotary tables. */
  #enter(io: StepIo, i: number, kvRow: number, token: number, position: number, adapterSlot: number | undefined): void {
    if (position < 0 || position >= this.maxPositions) {
      throw new RingletError('internal', `position ${position}; the KV cache has ${this.maxPositions}`)
    }
    const delta = adapterSlot === undefined ? undefined : this.#adapters.get(adapterSlot).embedding
    this.#parts.embedding.write(token, position, delta, io.embeddings, i * this.hiddenSize)
    io.setToken(i, kvRow, position, this.#rope.tableRow(kvRow, position))
  }

  #form(form: RunForm): GraphForm {
    return { ...form, weights: this.#dtype, tiled: this.#parts.kernels.tiled, kv: this.#kernelKv }
  }

  #binding(bindings: Map<string, OrtBinding>, key: string, form: GraphForm): OrtBinding {
    const known = bindings.get(key)
    if (known !== undefined) {
      return known
    }
    const binding = new OrtBinding(this.#parts.environment, this.#sessions.get(form))
    bindings.set(key, binding)
    return binding
  }

  #prefillIoFor(tokens: number, logits: number): StepIo {
    if (!this.#prefillIo.holds(tokens, logits)) {
      this.#prefillIo.dispose()
      this.#prefillIo = this.#createIo(this.#prefillIo.most(tokens, Math.max(logits, 1)))
    }
    return this.#prefillIo
  }

  #createIo(most: { tokens: number; logits: number }): StepIo {
    const { hiddenSize, vocabSize } = this
    const { usesPositionIds } = this.#rope
    return new StepIo(this.#parts.environment, { hiddenSize, vocabSize, ...most, usesPositionIds })
  }
}

function decodeShape({ first, count }: DecodeRun): StepShape {
  return { first, rows: count, tokens: 1, hidden: count, logits: count }
}

function isSame(a: DecodeBatch['adapterSlots'], b: DecodeBatch['adapterSlots']): boolean {
  return a.length === b.length && a.every((slot, row) => slot === b[row])
}
