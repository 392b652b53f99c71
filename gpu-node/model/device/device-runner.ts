/** The `ModelRunner` of a device: weights, KV, adapters and inputs lie on it from the first step to the last. */

import { RingletError } from '../../../shared/errors.ts'
import type { DecodeBatch, KvRange, KvSnapshot, ModelRunner, PrefillChunk } from '../../engine/engine-types.ts'
import { OrtBinding } from '../../ort/binding.ts'
import { NO_GRAPH, RunOptions } from '../../ort/run-options.ts'
import type { OrtSession } from '../../ort/session.ts'
import type { AdapterLayout, PackedAdapter } from '../packed-adapter.ts'
import type { SavedHead } from '../runner/loaded-adapter.ts'
import { RopeChoice } from '../runner/rope-choice.ts'
import { SavedHeads } from '../runner/saved-heads.ts'
import { type DevicePlan, planDevice } from './choose-device-form.ts'
import { DeviceBanks } from './device-banks.ts'
import type { DeviceContext } from './device-context.ts'
import { BASE_DEVICE_FORM, type DeviceForm, deviceFormKey } from './device-form.ts'
import { buildDeviceGraph, type DeviceModel } from './device-graph.ts'
import { DeviceKv } from './device-kv.ts'
import { DeviceLogits } from './device-logits.ts'
import { DeviceOutputs } from './device-outputs.ts'
import type { DeviceWeights } from './device-weights.ts'
import { GraphCaptures, totalBucket } from './graph-captures.ts'
import { type DeviceShape, StepInputs, type StepToken } from './step-inputs.ts'

export interface DeviceSizes {
  maxRows: number
  maxPositions: number
  /** Most prompt tokens of one run; longer chunks run in pieces. */
  maxChunk: number
  /** Most tokens of one run whose logits are wanted. */
  maxLogits: number
}

export interface DeviceRunnerOptions {
  device: DeviceContext
  model: DeviceModel
  weights: DeviceWeights
  sizes: DeviceSizes
  /** Decode runs whose shapes repeat are captured. */
  graphs: boolean
  onNotice?: (text: string) => void
}

interface FormSession {
  session: OrtSession
  /** Its runs must name the capture that they are, or that they are none. */
  captures: boolean
}

export class DeviceRunner implements ModelRunner {
  readonly maxRows: number
  readonly maxPositions: number
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly adapterSlots: number
  /** How adapters are to be packed. */
  readonly adapterLayout: AdapterLayout
  readonly kept: DeviceLogits
  /** Whose the kept rows are. */
  #keptSlots: readonly (number | undefined)[] = []
  readonly #options: DeviceRunnerOptions
  readonly #sessions = new Map<string, FormSession>()
  readonly #bindings = new Map<string, OrtBinding>()
  readonly #kv: DeviceKv
  readonly #banks: DeviceBanks
  readonly #inputs: StepInputs
  readonly #outputs: DeviceOutputs
  readonly #rope: RopeChoice
  readonly #heads: SavedHeads
  readonly #captures = new GraphCaptures()
  readonly #runOptions = new Map<number, RunOptions>()
  #graphs: boolean

  constructor(options: DeviceRunnerOptions) {
    const { device, model, sizes } = options
    const { decoder, banks, floats } = model
    this.maxRows = sizes.maxRows
    this.maxPositions = sizes.maxPositions
    this.vocabSize = decoder.vocabSize
    this.hiddenSize = decoder.hiddenSize
    this.adapterSlots = banks.slots
    this.adapterLayout = `device-${floats}`
    this.#options = options
    this.#graphs = options.graphs
    this.#kv = new DeviceKv(device, model, sizes.maxRows, sizes.maxPositions)
    this.#banks = new DeviceBanks(device, model)
    this.#rope = new RopeChoice(decoder, sizes.maxRows)
    this.#heads = new SavedHeads(device.environment, decoder)
    const tokens = Math.max(sizes.maxChunk, sizes.maxRows)
    this.#inputs = new StepInputs(device, model, this.#banks, this.#rope, tokens)
    const logitRows = Math.max(sizes.maxLogits, sizes.maxRows)
    this.#outputs = new DeviceOutputs(device, {
      hiddenSize: decoder.hiddenSize,
      vocabSize: decoder.vocabSize,
      hiddenRows: tokens,
      logitRows,
    })
    this.kept = new DeviceLogits(device, this.#outputs.logitRows, {
      maxRows: Math.min(logitRows, tokens),
      graphs: options.graphs,
      own: { has: (row) => this.#keptHead(row) !== undefined, logits: (row) => this.#ownLogits(row) },
    })
  }

  get weightBytes(): number {
    return this.#options.weights.bytes
  }

  /**
   * Runs the sessions that steps mostly need at their largest, so that no sequence waits for them, and memory that does not
   * suffice shows now; what smaller runs take is cut from it. Rarer forms come when first used. No row is in use yet.
   */
  warmUp(): void {
    const { maxRank } = this.#options.model.banks
    const { maxChunk, maxLogits } = this.#options.sizes
    const count = Math.min(maxChunk, this.maxPositions)
    const step = (rows: number): StepToken[] =>
      Array.from({ length: rows }, (_, i) => ({ kvRow: 0, token: 0, position: i, adapterSlot: undefined }))
    this.#rope.choose(0, count)
    for (const lora of ['none', 'gather'] as const) {
      const plan: DevicePlan = { form: { ...BASE_DEVICE_FORM, lora }, slots: [], ranks: lora === 'none' ? 0 : maxRank }
      const outputs = Math.min(count, maxLogits)
      this.#inputs.fill(plan, step(count), [count - 1])
      this.#run(plan, { rows: 1, tokens: count, hidden: outputs, logits: outputs }, 0, count, false)
      const positions = Array.from({ length: this.maxRows }, () => 0)
      this.#inputs.fill(
        plan,
        step(this.maxRows).map((token) => ({ ...token, position: 0 })),
        positions,
      )
      const shape = { rows: this.maxRows, tokens: 1, hidden: this.maxRows, logits: this.maxRows }
      this.#run(plan, shape, 0, totalBucket(1, this.maxPositions), true)
    }
  }

  prefill(chunk: PrefillChunk): Float32Array {
    const count = chunk.tokens.length
    if (chunk.keep === true) {
      if (chunk.logits === 'all' && count > this.kept.maxRows) {
        throw new RingletError('internal', `logits of ${count} rows are to be kept; at most ${this.kept.maxRows} are`)
      }
      const wanted = chunk.logits === 'all' ? count : chunk.logits === 'last' ? 1 : 0
      this.#runChunk(chunk, 'logits', wanted)
      this.#keptSlots = Array.from({ length: wanted }, () => chunk.adapterSlot)
      return new Float32Array(0)
    }
    if (chunk.logits !== 'all') {
      this.#runChunk(chunk, 'logits', chunk.logits === 'last' ? 1 : 0)
      return chunk.logits === 'last' ? this.#lastLogits(chunk.adapterSlot) : new Float32Array(0)
    }
    const all = new Float32Array(count * this.vocabSize)
    this.#runChunk(chunk, 'logits', count, (rows, at) => {
      all.set(
        this.#logitsOf(rows, () => chunk.adapterSlot),
        at * this.vocabSize,
      )
    })
    return all
  }

  hiddenStates(chunk: Omit<PrefillChunk, 'logits'>): Float32Array {
    const all = new Float32Array(chunk.tokens.length * this.hiddenSize)
    this.#runChunk(chunk, 'hidden', chunk.tokens.length, (rows, at) => {
      all.set(this.#outputs.hidden(rows), at * this.hiddenSize)
    })
    return all
  }

  decode({ tokens, positions, adapterSlots, keep }: DecodeBatch): Float32Array {
    const rows = tokens.length
    if (rows < 1 || rows > this.maxRows) {
      throw new RingletError('internal', `a decode batch of ${rows} rows; the KV cache has ${this.maxRows}`)
    }
    const step = Array.from(tokens, (token, row): StepToken => {
      const position = positions[row]!
      this.#checkPosition(position)
      return { kvRow: row, token, position, adapterSlot: adapterSlots[row] }
    })
    const plan = this.#plan(adapterSlots)
    this.#inputs.fill(plan, step, Array.from(positions))
    const shape = { rows, tokens: 1, hidden: rows, logits: rows }
    const longest = positions.reduce((most, position) => Math.max(most, position + 1), 1)
    this.#run(plan, shape, 0, totalBucket(longest, this.maxPositions), true)
    if (keep === true) {
      this.#keptSlots = adapterSlots
      return new Float32Array(0)
    }
    return this.#logitsOf(rows, (row) => adapterSlots[row])
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
    this.#banks.load(adapterSlot, adapter)
  }

  /** Waits until the adapters in these slots are there; steps that use them do so themselves. */
  settle(adapterSlots: readonly number[]): void {
    this.#banks.settle(adapterSlots)
  }

  unloadAdapter(adapterSlot: number): void {
    this.#banks.unload(adapterSlot)
  }

  dispose(): void {
    for (const binding of this.#bindings.values()) {
      binding.dispose()
    }
    this.#bindings.clear()
    for (const { session } of this.#sessions.values()) {
      session.dispose()
    }
    this.#sessions.clear()
    for (const options of this.#runOptions.values()) {
      options.dispose()
    }
    this.#runOptions.clear()
    this.#heads.dispose()
    this.kept.dispose()
    this.#outputs.dispose()
    this.#inputs.dispose()
    this.#banks.dispose()
    this.#kv.dispose()
    const { device, weights } = this.#options
    weights.dispose()
    device.dispose()
    device.environment.dispose()
  }

  /**
   * Runs a chunk in pieces; `wanted` of its last tokens have their outputs taken by `take(rows of the piece, first among the
   * wanted)`.
   */
  #runChunk(
    chunk: Omit<PrefillChunk, 'logits'>,
    what: 'hidden' | 'logits',
    wanted: number,
    take: (rows: number, at: number) => void = () => {},
  ): void {
    const { kvRow, tokens, startPosition, adapterSlot } = chunk
    const count = tokens.length
    if (count === 0 || kvRow < 0 || kvRow >= this.maxRows) {
      throw new RingletError('internal', `a chunk of ${count} tokens for row ${kvRow} of ${this.maxRows}`)
    }
    this.#checkPosition(startPosition)
    this.#checkPosition(startPosition + count - 1)
    this.#rope.choose(kvRow, chunk.promptPositions ?? startPosition + count)
    const { maxChunk, maxLogits } = this.#options.sizes
    // What is kept is kept of one piece.
    const whole = chunk.keep === true && wanted > 1
    const piece = whole ? count : what === 'logits' && wanted > 1 ? Math.min(maxChunk, maxLogits) : maxChunk
    const plan = this.#plan([adapterSlot])
    for (let first = 0; first < count; first += piece) {
      const end = Math.min(count, first + piece)
      const step = Array.from(tokens.subarray(first, end), (token, i): StepToken => {
        return { kvRow, token, position: startPosition + first + i, adapterSlot }
      })
      this.#inputs.fill(plan, step, [startPosition + end - 1])
      const rows = Math.max(0, end - Math.max(first, count - wanted))
      // One row at least: products without rows are a case that no kernel need know.
      const shape = {
        rows: 1,
        tokens: end - first,
        hidden: Math.max(1, rows),
        logits: what === 'logits' ? Math.max(1, rows) : 1,
      }
      this.#run(plan, shape, kvRow, startPosition + end, false)
      if (rows > 0) {
        take(rows, Math.max(first, count - wanted) - (count - wanted))
      }
    }
  }

  #plan(adapterSlots: readonly (number | undefined)[]): DevicePlan {
    const plan = planDevice(adapterSlots, (slot) => this.#banks.get(slot).traits, this.#options.model.banks)
    this.#banks.settle(plan.slots)
    return plan
  }

  #run(plan: DevicePlan, shape: DeviceShape, firstRow: number, total: number, decode: boolean): void {
    const { form, ranks } = plan
    const { rows, tokens, hidden, logits } = shape
    const key = [deviceFormKey(form), ranks, rows, tokens, hidden, logits, total].join(':')
    const { session, captures } = this.#session(form)
    const capture = captures && decode ? this.#captures.idOf(key) : undefined
    // A captured run keeps what it is bound to; all others are bound anew, as they come in any number of shapes.
    const place = capture === undefined ? deviceFormKey(form) : key
    const known = this.#bindings.get(place)
    const binding = known ?? new OrtBinding(this.#options.device.environment, session)
    this.#bindings.set(place, binding)
    if (known === undefined || capture === undefined) {
      this.#inputs.bind(binding, plan, shape, total)
      this.#banks.bind(binding, form.lora === 'window' ? ranks : undefined, form)
      this.#kv.bind(binding, firstRow, rows)
      this.#outputs.bind(binding, hidden, logits)
    }
    binding.run(captures ? this.#optionsOf(capture) : undefined)
  }

  #optionsOf(id: number = NO_GRAPH): RunOptions {
    const known = this.#runOptions.get(id)
    if (known !== undefined) {
      return known
    }
    const options = new RunOptions(this.#options.device.environment, id)
    this.#runOptions.set(id, options)
    return options
  }

  #session(form: DeviceForm): FormSession {
    const key = deviceFormKey(form)
    const known = this.#sessions.get(key)
    if (known !== undefined) {
      return known
    }
    const { device, model, weights } = this.#options
    const graph = buildDeviceGraph(model, form)
    const made = (this.#graphs ? this.#capturingSession(graph) : undefined) ?? {
      session: device.session(graph, weights.initializers),
      captures: false,
    }
    this.#sessions.set(key, made)
    return made
  }

  /** Where ONNX Runtime cannot capture this model, steps run as they are. */
  #capturingSession(graph: Uint8Array): FormSession | undefined {
    const { device, weights, onNotice } = this.#options
    try {
      return { session: device.session(graph, weights.initializers, true), captures: true }
    } catch (error) {
      this.#graphs = false
      onNotice?.(`CUDA graphs are off: ${error instanceof Error ? error.message : String(error)}`)
      return undefined
    }
  }

  #lastLogits(adapterSlot: number | undefined): Float32Array {
    return this.#logitsOf(1, () => adapterSlot)
  }

  /** Logits of the run's last rows; those of adapters with a head of their own come from it. */
  #logitsOf(rows: number, slotOf: (row: number) => number | undefined): Float32Array {
    const logits = this.#outputs.logits(rows)
    let hidden: Float32Array | undefined
    for (let row = 0; row < rows; row++) {
      const slot = slotOf(row)
      const head = slot === undefined ? undefined : this.#banks.get(slot).savedHead
      if (head !== undefined) {
        hidden ??= this.#outputs.hidden(rows)
        this.#heads.run(head, 1, hidden.subarray(row * this.hiddenSize), logits.subarray(row * this.vocabSize))
      }
    }
    return logits
  }

  /** The head of its own that a kept row's adapter has. */
  #keptHead(row: number): SavedHead | undefined {
    const slot = this.#keptSlots[row]
    return slot === undefined ? undefined : this.#banks.get(slot).savedHead
  }

  /** Such heads run on the host. */
  #ownLogits(row: number): Float32Array {
    const logits = new Float32Array(this.vocabSize)
    const hidden = this.#outputs.hidden(this.#keptSlots.length)
    this.#heads.run(this.#keptHead(row)!, 1, hidden.subarray(row * this.hiddenSize), logits)
    return logits
  }

  #checkPosition(position: number): void {
    if (position < 0 || position >= this.maxPositions) {
      throw new RingletError('internal', `position ${position}; the KV cache has ${this.maxPositions}`)
    }
  }
}
