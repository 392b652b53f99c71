/** `KeptLogits` of a device runner: shortlists and spans are computed where the logits lie, and only they come down. */

import type { KeptLogits, ScoreChanges, Shortlist, ShortlistAsk } from '../../engine/engine-types.ts'
import { OrtBinding } from '../../ort/binding.ts'
import { NO_GRAPH, RunOptions } from '../../ort/run-options.ts'
import type { OrtSession } from '../../ort/session.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import type { DeviceContext } from './device-context.ts'
import { type LogitRows, OutputRows } from './device-outputs.ts'
import { GraphCaptures } from './graph-captures.ts'
import {
  ALL_LOGITS,
  ASKED_ROWS,
  BIAS,
  BIT_SCORES,
  buildShortlistGraph,
  buildSpanGraph,
  COLUMN_SCORES,
  COLUMNS,
  FLAT_LOGITS,
  MASK_ROWS,
  MASKS,
  OFFSETS,
  ONES,
  PENALTY,
  PLACES,
  paddedWidth,
  REPETITION,
  SCALES,
  type ShortlistForm,
  type ShortlistShape,
  SPANS,
  STARTS,
} from './shortlist-graph.ts'
import { ShortlistOutputs, shortlistNumbers } from './shortlist-outputs.ts'
import { StepBuffer } from './step-buffer.ts'

/** Tokens of a list: nuclei mostly close within it. */
const LIST_LENGTH = 64
const SPAN_LENGTH = 256
/** Room for changes of a step, from the least that holds them: few shapes, so that captured graphs are found again. */
const CHANGE_ROOMS = [256, 2048, 16_384, 131_072]
const SMALLEST_TEMPERATURE = 1e-30

/** Rows whose logits were computed on the host, of adapters with a head of their own. */
export interface OwnRows {
  has(row: number): boolean
  logits(row: number): Float32Array
}

export function shortlistShape(vocabSize: number): ShortlistShape {
  return {
    vocabSize,
    length: Math.min(LIST_LENGTH, vocabSize),
    spanLength: Math.min(SPAN_LENGTH, vocabSize),
    width: paddedWidth(vocabSize, LIST_LENGTH),
  }
}

/** Bytes that stay on the device, and bytes of a run. */
export function shortlistBytes(vocabSize: number, rows: number): { resident: number; workspace: number } {
  const shape = shortlistShape(vocabSize)
  const changes = CHANGE_ROOMS.reduce((sum, room) => sum + room * 16, 0)
  const { width, spanLength } = shape
  const tables = 256 * 8 * 4 + SPAN_LENGTH * 12 + width * 8
  const perRow = 4 * spanLength + Math.ceil(width / 8) + 64
  const resident = changes + tables + (rows + 1) * perRow + 4 * shortlistNumbers(shape, rows)
  // Rows, filled up, changed, mask with its codes, exponentials, and the first round of the largest with their columns.
  return { resident, workspace: rows * width * 4 * 10 }
}

export class DeviceLogits implements KeptLogits {
  readonly maxRows: number
  readonly spanLength: number
  readonly #device: DeviceContext
  readonly #logits: LogitRows
  readonly #shape: ShortlistShape
  readonly #own: OwnRows
  readonly #asks: StepBuffer<string>
  readonly #constants: StepBuffer<string>
  /** By room. */
  readonly #changes = new Map<number, StepBuffer<string>>()
  #masks: StepBuffer<typeof MASKS> | undefined
  readonly #lists: ShortlistOutputs
  readonly #spans: OutputRows
  readonly #allLogits: OrtTensor
  readonly #flatLogits: OrtTensor
  readonly #sessions = new Map<string, OrtSession>()
  readonly #bindings = new Map<string, OrtBinding>()
  readonly #captures = new GraphCaptures()
  readonly #runOptions = new Map<number, RunOptions>()
  readonly #graphs: boolean

  constructor(
    device: DeviceContext,
    logits: LogitRows,
    { maxRows, graphs, own }: { maxRows: number; graphs: boolean; own: OwnRows },
  ) {
    const { rows, vocabSize, address } = logits
    this.#device = device
    this.#logits = logits
    this.#graphs = graphs
    this.#own = own
    this.#shape = shortlistShape(vocabSize)
    this.maxRows = maxRows
    this.spanLength = this.#shape.spanLength
    this.#asks = new StepBuffer(device, {
      [ASKED_ROWS]: { type: 'int32', elements: maxRows },
      [MASK_ROWS]: { type: 'int32', elements: maxRows },
      [STARTS]: { type: 'int32', elements: maxRows },
      [SCALES]: { type: 'float32', elements: maxRows },
    })
    this.#constants = new StepBuffer(device, {
      [ONES]: { type: 'float32', elements: this.spanLength },
      [OFFSETS]: { type: 'int32', elements: this.spanLength },
      [BIT_SCORES]: { type: 'float32', elements: 256 * 8 },
      [COLUMNS]: { type: 'int32', elements: this.#shape.width },
      [COLUMN_SCORES]: { type: 'float32', elements: this.#shape.width },
    })
    this.#constants.floats(ONES).fill(1)
    this.#constants.int32(OFFSETS).set(Int32Array.from({ length: this.spanLength }, (_, i) => i))
    const bits = Array.from({ length: 256 * 8 }, (_, i) => ((i >> 3) >> (i & 7)) & 1)
    this.#constants.floats(BIT_SCORES).set(bits.map((bit) => (bit === 1 ? 0 : Number.NEGATIVE_INFINITY)))
    this.#constants.int32(COLUMNS).forEach((_, column, columns) => {
      columns[column] = column < vocabSize ? column : 0
    })
    this.#constants.floats(COLUMN_SCORES).fill(Number.NEGATIVE_INFINITY, vocabSize)
    this.#constants.upload()
    this.#lists = new ShortlistOutputs(device, this.#shape, maxRows)
    this.#spans = new OutputRows(device, maxRows, this.spanLength)
    this.#allLogits = device.tensor('float32', [rows, 1, vocabSize], address)
    this.#flatLogits = device.tensor('float32', [rows * vocabSize], address)
  }

  shortlists(asks: readonly ShortlistAsk[]): (Shortlist | undefined)[] {
    let changes = 0
    const able = asks.filter((ask) => {
      const its = ask.changes?.tokens.length ?? 0
      const takes = !this.#own.has(ask.row) && changes + its <= CHANGE_ROOMS.at(-1)!
      changes += takes ? its : 0
      return takes
    })
    if (able.length === 0) {
      return asks.map(() => undefined)
    }
    const form = { changed: changes > 0, masked: able.some(({ mask }) => mask !== undefined) }
    const room = CHANGE_ROOMS.find((it) => it >= changes)!
    this.#fillAsks(able, form)
    if (form.changed) {
      this.#fillChanges(able, room)
    }
    this.#runShortlists(able.length, form, room)
    const lists = this.#lists.fetch(able.length)
    return asks.map((ask) => lists[able.indexOf(ask)])
  }

  spans(asks: readonly { row: number; span: number }[]): Float32Array[] {
    const { vocabSize } = this.#logits
    const starts = this.#asks.int32(STARTS)
    const lasts = asks.map(({ span }) => Math.min(span * this.spanLength, vocabSize - this.spanLength))
    for (const [i, { row }] of asks.entries()) {
      starts[i] = row * vocabSize + lasts[i]!
    }
    this.#asks.upload()
    const count = asks.length
    this.#run(
      'spans',
      `spans:${count}`,
      () => buildSpanGraph(this.#shape),
      (binding) => {
        binding.input(FLAT_LOGITS, this.#flatLogits)
        binding.input(STARTS, this.#asks.view(STARTS, [count, 1]))
        binding.input(OFFSETS, this.#constants.view(OFFSETS, [1, this.spanLength]))
        binding.output(SPANS, this.#spans.tensor([count, this.spanLength]))
      },
    )
    const all = this.#spans.fetch(count)
    return asks.map(({ span }, i) => {
      // The last span is shorter, and was fetched with numbers before it.
      const before = span * this.spanLength - lasts[i]!
      return all.subarray(i * this.spanLength + before, (i + 1) * this.spanLength)
    })
  }

  row(row: number): Float32Array {
    return this.#own.has(row) ? this.#own.logits(row) : this.#logits.fetch(row, 1)
  }

  dispose(): void {
    for (const it of [...this.#bindings.values(), ...this.#sessions.values(), ...this.#runOptions.values()]) {
      it.dispose()
    }
    for (const buffer of [this.#asks, this.#constants, ...this.#changes.values()]) {
      buffer.dispose()
    }
    this.#masks?.dispose()
    this.#lists.dispose()
    this.#spans.dispose()
    this.#allLogits.dispose()
    this.#flatLogits.dispose()
  }

  #fillAsks(asks: readonly ShortlistAsk[], { masked }: ShortlistForm): void {
    const [rows, maskRows] = [this.#asks.int32(ASKED_ROWS), this.#asks.int32(MASK_ROWS)]
    const scales = this.#asks.floats(SCALES)
    for (const [i, { row, mask, temperature }] of asks.entries()) {
      rows[i] = row
      scales[i] = 1 / Math.max(temperature, SMALLEST_TEMPERATURE)
      maskRows[i] = masked && mask !== undefined ? this.#putMask(i + 1, mask) : 0
    }
    if (masked) {
      this.#masks!.upload()
    }
    this.#asks.upload()
  }

  /** Row 0 allows everything. */
  #putMask(row: number, mask: Int32Array): number {
    const bytes = Math.ceil(this.#shape.width / 8)
    if (this.#masks === undefined) {
      this.#masks = new StepBuffer(this.#device, { [MASKS]: { type: 'uint8', elements: (this.maxRows + 1) * bytes } })
      this.#masks.bytes(MASKS).fill(255, 0, bytes)
    }
    const all = this.#masks.bytes(MASKS)
    const source = new Uint8Array(mask.buffer, mask.byteOffset, Math.min(mask.byteLength, bytes))
    // A mask that ends early forbids what is behind.
    all.fill(0, row * bytes + source.length, (row + 1) * bytes)
    all.set(source, row * bytes)
    return row
  }

  #fillChanges(asks: readonly ShortlistAsk[], room: number): void {
    const buffer = this.#changeBuffer(room)
    const places = buffer.int32(PLACES)
    const numbers = ([BIAS, REPETITION, PENALTY] as const).map((name) => buffer.floats(name))
    let at = 0
    for (const [i, { changes }] of asks.entries()) {
      if (changes !== undefined) {
        at = this.#putChanges(changes, i * this.#shape.width, at, places, numbers)
      }
    }
    // What fills up says once more what the first one says.
    for (const array of [places, ...numbers]) {
      array.fill(array[0]!, at)
    }
    buffer.upload()
  }

  #putChanges(
    changes: ScoreChanges,
    firstPlace: number,
    at: number,
    places: Int32Array,
    numbers: readonly (Float32Array | Uint16Array)[],
  ): number {
    const { tokens } = changes
    for (let i = 0; i < tokens.length; i++) {
      places[at + i] = firstPlace + tokens[i]!
    }
    for (const [i, name] of (['bias', 'repetition', 'penalty'] as const).entries()) {
      numbers[i]!.set(changes[name], at)
    }
    return at + tokens.length
  }

  #changeBuffer(room: number): StepBuffer<string> {
    const known = this.#changes.get(room)
    if (known !== undefined) {
      return known
    }
    const numbers = { type: 'float32', elements: room } as const
    const buffer = new StepBuffer<string>(this.#device, {
      [PLACES]: { type: 'int32', elements: room },
      [BIAS]: numbers,
      [REPETITION]: numbers,
      [PENALTY]: numbers,
    })
    this.#changes.set(room, buffer)
    return buffer
  }

  #runShortlists(count: number, form: ShortlistForm, room: number): void {
    const { changed, masked } = form
    const kind = `${changed ? 'changed' : 'plain'}${masked ? '/masked' : ''}`
    const key = `${kind}:${count}:${changed ? room : 0}`
    this.#run(
      kind,
      key,
      () => buildShortlistGraph(this.#shape, form),
      (binding) => {
        binding.input(ALL_LOGITS, this.#allLogits)
        binding.input(ASKED_ROWS, this.#asks.view(ASKED_ROWS, [count]))
        binding.input(SCALES, this.#asks.view(SCALES, [count, 1]))
        binding.input(ONES, this.#constants.view(ONES, [this.spanLength, 1]))
        const { width, vocabSize } = this.#shape
        if (width > vocabSize) {
          binding.input(COLUMNS, this.#constants.view(COLUMNS, [width]))
          binding.input(COLUMN_SCORES, this.#constants.view(COLUMN_SCORES, [1, width]))
        }
        if (changed) {
          for (const name of [PLACES, BIAS, REPETITION, PENALTY]) {
            binding.input(name, this.#changeBuffer(room).view(name, [room]))
          }
        }
        if (masked) {
          const bytes = Math.ceil(width / 8)
          binding.input(MASKS, this.#masks!.view(MASKS, [this.maxRows + 1, bytes]))
          binding.input(MASK_ROWS, this.#asks.view(MASK_ROWS, [count]))
          binding.input(BIT_SCORES, this.#constants.view(BIT_SCORES, [256, 8]))
        }
        this.#lists.bind(binding, count)
      },
    )
  }

  #run(kind: string, key: string, build: () => Uint8Array, bind: (binding: OrtBinding) => void): void {
    const known = this.#bindings.get(key)
    if (known === undefined) {
      const session = this.#sessions.get(kind) ?? this.#device.session(build(), undefined, this.#graphs)
      this.#sessions.set(kind, session)
    }
    const binding = known ?? new OrtBinding(this.#device.environment, this.#sessions.get(kind)!)
    if (known === undefined) {
      bind(binding)
      this.#bindings.set(key, binding)
    }
    binding.run(this.#graphs ? this.#optionsOf(this.#captures.idOf(key)) : undefined)
  }

  #optionsOf(id: number = NO_GRAPH): RunOptions {
    const options = this.#runOptions.get(id) ?? new RunOptions(this.#device.environment, id)
    this.#runOptions.set(id, options)
    return options
  }
}
