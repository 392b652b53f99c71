/** The small inputs of a device run: filled on the host, copied up in one piece, bound as views of the device's copy. */

import { RingletError } from '../../../shared/errors.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import { HIDDEN_ROWS, LAST_POSITIONS, LOGIT_ROWS, POSITION_IDS, TOTAL_POSITIONS } from '../graph/graph-names.ts'
import type { RopeChoice } from '../runner/rope-choice.ts'
import { bankRows, partCounts } from './bank-layout.ts'
import { BASE_SLOT, type DevicePlan, writeGatherRows } from './choose-device-form.ts'
import type { DeviceBanks } from './device-banks.ts'
import type { DeviceContext } from './device-context.ts'
import type { DeviceModel } from './device-graph.ts'
import {
  bankOwnersName,
  bankRowsName,
  EMBEDDING_DELTA,
  EMBEDDING_KEEP,
  EXTRAS,
  HEAD_EXTRAS,
  HEAD_SLOTS,
  POSITIONS,
  SLOTS,
  TOKENS,
} from './device-names.ts'
import { writeEmbeddingDelta } from './embedding-delta.ts'
import { type Section, StepBuffer } from './step-buffer.ts'

export interface DeviceShape {
  rows: number
  /** A row. */
  tokens: number
  /** The last ones of the step whose hidden states, and among them whose logits, are computed; at least one. */
  hidden: number
  logits: number
}

export interface StepToken {
  kvRow: number
  token: number
  position: number
  adapterSlot: number | undefined
}

const INDICES = 'indices'

export class StepInputs {
  readonly #device: DeviceContext
  readonly #model: DeviceModel
  readonly #banks: DeviceBanks
  readonly #rope: RopeChoice
  readonly #small: StepBuffer<string>
  readonly #maxTokens: number
  /** Made when an adapter first changes embeddings. */
  #embedding: StepBuffer<typeof EMBEDDING_DELTA | typeof EMBEDDING_KEEP> | undefined
  /** On the host, where GroupQueryAttention reads it; by value, as a captured run keeps its own. */
  readonly #totals = new Map<number, OrtTensor>()

  constructor(device: DeviceContext, model: DeviceModel, banks: DeviceBanks, rope: RopeChoice, maxTokens: number) {
    this.#device = device
    this.#model = model
    this.#banks = banks
    this.#rope = rope
    this.#maxTokens = maxTokens
    this.#small = new StepBuffer(device, smallSections(model, maxTokens))
    for (const [i] of this.#small.int64(INDICES).entries()) {
      this.#small.int64(INDICES)[i] = BigInt(i)
    }
  }

  /** Fills and uploads everything that a run of this plan reads. `lastPositions`: by row. */
  fill(plan: DevicePlan, tokens: readonly StepToken[], lastPositions: readonly number[]): void {
    const { vocabSize } = this.#model.decoder
    const small = this.#small
    const [ids, positions, slots, extras] = [TOKENS, POSITIONS, SLOTS, EXTRAS].map((name) => small.int32(name))
    const headSlots = small.int32(HEAD_SLOTS)
    const headExtras = small.int32(HEAD_EXTRAS)
    const positionIds = small.int64(POSITION_IDS)
    for (const [i, { kvRow, token, position, adapterSlot }] of tokens.entries()) {
      if (!Number.isInteger(token) || token < 0 || token >= vocabSize) {
        throw new RingletError('internal', `token ${token} is outside the vocabulary of ${vocabSize}`)
      }
      const traits = adapterSlot === undefined ? undefined : this.#banks.get(adapterSlot).traits
      ids![i] = token
      positions![i] = position
      slots![i] = adapterSlot ?? BASE_SLOT
      headSlots[i] = traits?.head ? adapterSlot! : BASE_SLOT
      extras![i] = traits?.extras ? adapterSlot! + 1 : 0
      headExtras[i] = extras![i]!
      positionIds[i] = BigInt(this.#rope.usesPositionIds ? this.#rope.tableRow(kvRow, position) : 0)
    }
    small.int32(LAST_POSITIONS).set(lastPositions)
    if (plan.form.lora === 'gather') {
      for (const parts of partCounts(this.#model.plan)) {
        const traitsOf = (slot: number) => this.#banks.get(slot).traits
        const rows = small.int32(bankRowsName(parts))
        writeGatherRows(plan, traitsOf, this.#model.banks, parts, rows, small.int32(bankOwnersName(parts)))
      }
    }
    small.upload()
    if (plan.form.embedding) {
      this.#fillEmbedding(tokens)
    }
  }

  bind(binding: OrtBinding, plan: DevicePlan, { rows, tokens, hidden, logits }: DeviceShape, total: number): void {
    const { decoder } = this.#model
    const count = rows * tokens
    const view = (name: string, shape: number[], first = 0) => binding.input(name, this.#small.view(name, shape, first))
    view(TOKENS, [rows, tokens])
    view(LAST_POSITIONS, [rows])
    binding.input(TOTAL_POSITIONS, this.#total(total))
    binding.input(HIDDEN_ROWS, this.#small.view(INDICES, [hidden], count - hidden))
    binding.input(LOGIT_ROWS, this.#small.view(INDICES, [logits, 1], hidden - logits))
    if (decoder.embedding.positionWeight !== undefined) {
      view(POSITIONS, [rows, tokens])
    }
    if (this.#rope.usesPositionIds) {
      view(POSITION_IDS, [rows, tokens])
    }
    const { lora, extras, head, embedding } = plan.form
    if (embedding) {
      binding.input(EMBEDDING_DELTA, this.#embeddings().view(EMBEDDING_DELTA, [rows, tokens, decoder.hiddenSize]))
      binding.input(EMBEDDING_KEEP, this.#embeddings().view(EMBEDDING_KEEP, [rows, tokens, 1]))
    }
    if (lora !== 'none') {
      view(SLOTS, [rows, tokens, 1])
    }
    if (lora !== 'none' && head) {
      view(HEAD_SLOTS, [logits, 1, 1], count - logits)
    }
    if (extras) {
      view(EXTRAS, [rows, tokens])
    }
    if (extras && head) {
      view(HEAD_EXTRAS, [logits, 1], count - logits)
    }
    if (lora === 'gather') {
      for (const parts of partCounts(this.#model.plan)) {
        view(bankRowsName(parts), [plan.ranks * parts])
        view(bankOwnersName(parts), [plan.ranks * parts])
      }
    }
  }

  dispose(): void {
    this.#small.dispose()
    this.#embedding?.dispose()
    for (const tensor of this.#totals.values()) {
      tensor.dispose()
    }
    this.#totals.clear()
  }

  #fillEmbedding(tokens: readonly StepToken[]): void {
    const buffer = this.#embeddings()
    const delta = buffer.floats(EMBEDDING_DELTA)
    const keep = buffer.floats(EMBEDDING_KEEP)
    for (const [i, { token, adapterSlot }] of tokens.entries()) {
      const parts = adapterSlot === undefined ? undefined : this.#banks.get(adapterSlot).packed.parts
      writeEmbeddingDelta(parts, token, this.#model.decoder.hiddenSize, i, delta, keep, this.#model.floats)
    }
    buffer.upload()
  }

  #embeddings() {
    const { decoder, floats } = this.#model
    this.#embedding ??= new StepBuffer(this.#device, {
      [EMBEDDING_DELTA]: { type: floats, elements: this.#maxTokens * decoder.hiddenSize },
      [EMBEDDING_KEEP]: { type: floats, elements: this.#maxTokens },
    })
    return this.#embedding
  }

  #total(positions: number): OrtTensor {
    const known = this.#totals.get(positions)
    if (known !== undefined) {
      return known
    }
    const tensor = new OrtTensor(this.#device.environment, 'int32', [], Int32Array.of(positions))
    this.#totals.set(positions, tensor)
    return tensor
  }
}

function smallSections({ plan, banks }: DeviceModel, maxTokens: number): Record<string, Section> {
  const ints = (elements: number): Section => ({ type: 'int32', elements })
  const names = [TOKENS, POSITIONS, LAST_POSITIONS, SLOTS, HEAD_SLOTS, EXTRAS, HEAD_EXTRAS]
  const rows = partCounts(plan).flatMap((parts) =>
    [bankRowsName(parts), bankOwnersName(parts)].map((name) => [name, ints(bankRows(parts, banks))] as const),
  )
  return {
    ...Object.fromEntries(names.map((name) => [name, ints(maxTokens)])),
    [POSITION_IDS]: { type: 'int64', elements: maxTokens },
    [INDICES]: { type: 'int64', elements: maxTokens + 1 },
    ...Object.fromEntries(rows),
  }
}
