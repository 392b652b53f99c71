/** The adapters on the device: banks, what lies in their slots, and the copies that load them. */

import { RingletError } from '../../../shared/errors.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import { loraInputs } from '../graph/graph-names.ts'
import { isHead, type MatrixPlan } from '../graph/weight-plan.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { HEAD_SAVED, HEAD_SAVED_BIAS } from '../packed-parts.ts'
import type { SavedHead } from '../runner/loaded-adapter.ts'
import { DEVICE_IMAGE } from './adapter-image.ts'
import { bankMatrices, bankRows, imageBlocks, imageElements, partCounts, slotRow } from './bank-layout.ts'
import { type DeviceTraits, NO_OWNER, writeSlotOwners } from './choose-device-form.ts'
import type { DeviceContext } from './device-context.ts'
import { type DeviceFloats, FLOAT_BYTES } from './device-form.ts'
import type { DeviceModel } from './device-graph.ts'
import { bankNames, bankOwnersName } from './device-names.ts'
import { LARGEST, narrow } from './narrow.ts'
import { StepBuffer } from './step-buffer.ts'

export interface ResidentAdapter {
  packed: PackedAdapter
  traits: DeviceTraits
  savedHead: SavedHead | undefined
}

interface MatrixBank {
  matrix: MatrixPlan
  /** Device addresses. */
  a: bigint
  b: bigint
  gain: bigint
  shift: bigint
}

export class DeviceBanks {
  readonly #device: DeviceContext
  readonly #model: DeviceModel
  readonly #banks: MatrixBank[]
  readonly #loaded: (ResidentAdapter | undefined)[]
  /** By part count; owners of all rows, for the window form. */
  readonly #owners: StepBuffer<string>
  readonly #views = new Map<string, OrtTensor>()
  /** Where images arrive, each after the one before has gone on to its slot. */
  readonly #arrivals: bigint
  /** Slots whose adapters are still on their way. */
  readonly #underWay = new Set<number>()

  constructor(device: DeviceContext, model: DeviceModel) {
    this.#device = device
    this.#model = model
    const { banks } = model
    this.#loaded = Array.from({ length: banks.slots })
    this.#banks = bankMatrices(model.plan).map((matrix) => this.#allocate(matrix))
    this.#arrivals = device.allocate(imageElements(model.plan, banks.maxRank, true) * this.#floatBytes)
    const counts = partCounts(model.plan)
    this.#owners = new StepBuffer(
      device,
      Object.fromEntries(
        counts.map((parts) => [bankOwnersName(parts), { type: 'int32' as const, elements: bankRows(parts, banks) }]),
      ),
    )
    for (const parts of counts) {
      this.#owners.int32(bankOwnersName(parts)).fill(NO_OWNER)
    }
    this.#owners.upload()
  }

  /** Fails where the slot is empty: a sequence never runs on the base because its adapter is missing. */
  get(slot: number): ResidentAdapter {
    const adapter = this.#loaded[slot]
    if (adapter === undefined) {
      throw new RingletError('engine_failed', `adapter slot ${slot} of ${this.#loaded.length} is empty`)
    }
    return adapter
  }

  /**
   * Starts the copies and returns: steps of other slots run meanwhile, and what these read of a slot that is half written is
   * replaced by zero or multiplied by it. `settle` comes before the first step that uses the slot.
   */
  load(slot: number, packed: PackedAdapter): void {
    this.#check(slot, packed)
    this.#underWay.add(slot)
    const { features, parts, rank } = packed
    const extras = features.bias || features.magnitude
    this.#copyImage(slot, packed)
    if (extras) {
      this.#copyExtras(slot, packed)
    }
    for (const count of partCounts(this.#model.plan)) {
      writeSlotOwners(slot, rank, this.#model.banks, count, this.#owners.int32(bankOwnersName(count)))
    }
    this.#owners.upload()
    this.#loaded[slot] = {
      packed,
      traits: { rank, extras, head: features.head, embedding: features.embedding },
      savedHead: this.#savedHead(parts),
    }
  }

  /** Waits for these slots' adapters. */
  settle(slots: readonly number[]): void {
    if (slots.some((slot) => this.#underWay.has(slot))) {
      this.#device.loads.wait()
      this.#underWay.clear()
    }
  }

  unload(slot: number): void {
    this.get(slot).savedHead?.weight.dispose()
    this.#loaded[slot] = undefined
  }

  /** `ranks`: of the window form, how many ranks of the banks take part; else all rows are bound and some gathered. */
  bind(binding: OrtBinding, ranks: number | undefined, form: { lora: string; extras: boolean; head: boolean }): void {
    const { banks, floats } = this.#model
    for (const { matrix, a, b, gain, shift } of this.#banks) {
      if (isHead(matrix) && !form.head) {
        continue
      }
      const names = bankNames(matrix)
      const { length: parts } = matrix.parts
      const rows = ranks === undefined ? bankRows(parts, banks) : ranks * parts
      if (form.lora !== 'none') {
        binding.input(names.a, this.#view(names.a, floats, [rows, matrix.inFeatures], a))
        binding.input(names.b, this.#view(names.b, floats, [rows, matrix.outFeatures], b))
      }
      if (form.extras) {
        const shape = [banks.slots + 1, matrix.outFeatures]
        binding.input(names.gain, this.#view(names.gain, floats, shape, gain))
        binding.input(names.shift, this.#view(names.shift, floats, shape, shift))
      }
    }
    if (ranks !== undefined) {
      for (const parts of partCounts(this.#model.plan)) {
        const name = bankOwnersName(parts)
        binding.input(name, this.#owners.view(name, [ranks * parts]))
      }
    }
  }

  dispose(): void {
    for (const [slot, adapter] of this.#loaded.entries()) {
      if (adapter !== undefined) {
        this.unload(slot)
      }
    }
    for (const tensor of this.#views.values()) {
      tensor.dispose()
    }
    this.#views.clear()
    this.#owners.dispose()
  }

  get #floatBytes(): number {
    return FLOAT_BYTES[this.#model.floats]
  }

  #check(slot: number, { layout, rank, parts }: PackedAdapter): void {
    const { banks, floats, format } = this.#model
    if (this.#device.target.kind === 'cpu' && floats === 'float16' && (format === 'int8' || format === 'int4')) {
      const why = 'ONNX Runtime computes MatMulNBits in halves wrongly there'
      throw new RingletError('not_supported', `adapters on ${format} weights and halves on the processor: ${why}`)
    }
    if (!Number.isInteger(slot) || slot < 0 || slot >= banks.slots) {
      throw new RingletError('internal', `adapter slot ${slot}; there are ${banks.slots}`)
    }
    if (this.#loaded[slot] !== undefined) {
      throw new RingletError('internal', `adapter slot ${slot} is in use`)
    }
    if (layout !== `device-${floats}` || parts[DEVICE_IMAGE] === undefined) {
      throw new RingletError('internal', `an adapter packed as ${layout}; this engine takes device-${floats}`)
    }
    if (rank > banks.maxRank) {
      const limit = `this node's slots hold ${banks.maxRank} (--max-adapter-rank)`
      throw new RingletError('adapter_too_large', `the adapter's rank is ${rank}; ${limit}`)
    }
  }

  /** Cleared: what no adapter has written must be finite, as it is multiplied by zero. */
  #allocate(matrix: MatrixPlan): MatrixBank {
    const { banks } = this.#model
    const rows = bankRows(matrix.parts.length, banks)
    const cleared = (elements: number): bigint => {
      const bytes = elements * this.#floatBytes
      const address = this.#device.allocate(bytes)
      this.#device.clear(address, bytes)
      return address
    }
    const bank = {
      matrix,
      a: cleared(rows * matrix.inFeatures),
      b: cleared(rows * matrix.outFeatures),
      gain: cleared((banks.slots + 1) * matrix.outFeatures),
      shift: cleared((banks.slots + 1) * matrix.outFeatures),
    }
    this.#put(new Float32Array(matrix.outFeatures).fill(1), bank.gain)
    this.#device.loads.wait()
    return bank
  }

  /** In one piece to the device, and block by block from there: hundreds of copies of a row or two would each wait for the bus. */
  #copyImage(slot: number, { parts, rank, features }: PackedAdapter): void {
    const { plan, banks } = this.#model
    const { loads } = this.#device
    const size = this.#floatBytes
    loads.up(parts[DEVICE_IMAGE]!, imageElements(plan, rank, features.head) * size, this.#arrivals)
    const byName = new Map(this.#banks.map((bank) => [bank.matrix.name, bank]))
    for (const { matrix, kind, part, row, column, rows, columns, offset } of imageBlocks(plan, rank, features.head)) {
      const width = kind === 'a' ? matrix.inFeatures : matrix.outFeatures
      const first = slotRow(slot, matrix.parts.length, banks)
      const address = byName.get(matrix.name)![kind] + BigInt((first + row) * width * size)
      // The adapter before had another rank, and so other columns in these rows.
      if (kind === 'b' && part === 0) {
        loads.clear(address, matrix.parts.length * rank * width * size)
      }
      const from = this.#arrivals + BigInt(offset * size)
      const across = columns * size
      loads.acrossRows(from, address + BigInt(column * size), {
        width: across,
        rows,
        fromPitch: across,
        toPitch: width * size,
      })
    }
  }

  #copyExtras(slot: number, { parts }: PackedAdapter): void {
    for (const { matrix, gain, shift } of this.#banks) {
      const names = loraInputs(matrix, 0)
      const size = matrix.outFeatures
      const offset = BigInt((slot + 1) * size * this.#floatBytes)
      this.#put(parts[names.gain] ?? new Float32Array(size).fill(1), gain + offset)
      this.#put(parts[names.shift] ?? new Float32Array(size), shift + offset)
    }
  }

  #put(values: Float32Array, address: bigint): void {
    const { loads } = this.#device
    const { floats } = this.#model
    if (floats === 'float32') {
      loads.up(values, values.byteLength, address)
      return
    }
    const halves = new Uint16Array(values.length)
    if (narrow(values, halves, floats) > 0) {
      throw new RingletError('adapter_refused', `the adapter's magnitudes or biases are beyond ${LARGEST[floats]}`)
    }
    loads.up(halves, halves.byteLength, address)
  }

  #savedHead(parts: PackedAdapter['parts']): SavedHead | undefined {
    const weight = parts[HEAD_SAVED]
    if (weight === undefined) {
      return undefined
    }
    const { outFeatures, inFeatures } = this.#model.plan.head
    // On the processor: such heads are rare and as large as the base's.
    const tensor = new OrtTensor(this.#device.environment, 'float32', [outFeatures, inFeatures], weight)
    return { weight: tensor, bias: parts[HEAD_SAVED_BIAS] }
  }

  #view(name: string, type: DeviceFloats, shape: number[], address: bigint): OrtTensor {
    const key = `${name}:${shape[0]}`
    const known = this.#views.get(key)
    if (known !== undefined) {
      return known
    }
    const tensor = this.#device.tensor(type, shape, address)
    this.#views.set(key, tensor)
    return tensor
  }
}
