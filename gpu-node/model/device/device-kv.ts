/** The KV cache on a device: `[maxRows, kvHeads, maxPositions, headSize]` for keys and values of each layer; copies of parts of rows. */

import { RingletError } from '../../../shared/errors.ts'
import type { KvRange, KvSnapshot } from '../../engine/engine-types.ts'
import { OrtBinding } from '../../ort/binding.ts'
import type { OrtSession } from '../../ort/session.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import { kvNames } from '../graph/graph-names.ts'
import { GraphWriter } from '../graph/graph-writer.ts'
import type { DeviceContext } from './device-context.ts'
import { DEVICE_OPSET, FLOAT_BYTES } from './device-form.ts'
import type { DeviceModel } from './device-graph.ts'

/** Bytes of one row: all layers, keys and values. */
export function kvRowBytes({ decoder, floats }: Pick<DeviceModel, 'decoder' | 'floats'>, maxPositions: number): number {
  return 2 * decoder.layers.length * decoder.kvHeads * maxPositions * decoder.headSize * FLOAT_BYTES[floats]
}

export class DeviceKv {
  readonly #device: DeviceContext
  readonly #model: DeviceModel
  readonly #maxRows: number
  readonly #maxPositions: number
  /** Keys and values of layer i at 2i and 2i + 1. */
  readonly #addresses: bigint[]
  /** By `first:count`. */
  readonly #ranges = new Map<string, OrtTensor[]>()
  readonly #save: OrtSession
  readonly #write: OrtSession
  readonly #copy: OrtSession

  constructor(device: DeviceContext, model: DeviceModel, maxRows: number, maxPositions: number) {
    this.#device = device
    this.#model = model
    this.#maxRows = maxRows
    this.#maxPositions = maxPositions
    const arrays = 2 * model.decoder.layers.length
    this.#addresses = Array.from({ length: arrays }, () => device.allocate(maxRows * this.#rowBytes))
    this.#save = device.session(saveModel(model, arrays))
    this.#write = device.session(writeModel(model, arrays, false))
    this.#copy = device.session(writeModel(model, arrays, true))
  }

  /** Binds rows `first … first + count - 1` as past and present of every layer. */
  bind(binding: OrtBinding, first: number, count: number): void {
    const tensors = this.#range(first, count)
    for (const layer of this.#model.decoder.layers.keys()) {
      const names = kvNames(layer)
      binding.input(names.pastKey, tensors[2 * layer]!)
      binding.input(names.pastValue, tensors[2 * layer + 1]!)
      binding.output(names.presentKey, tensors[2 * layer]!)
      binding.output(names.presentValue, tensors[2 * layer + 1]!)
    }
  }

  /** Numbers of `positions` positions, in the device's floats; halves two to a float. Layout: by array, by head. */
  save({ kvRow, start, end }: KvRange): KvSnapshot {
    this.#check(kvRow, end)
    const count = end - start
    const bytes = this.#snapshotBytes(count)
    const data = new Float32Array(Math.ceil(bytes / 4))
    this.#run(this.#save, (binding, own) => {
      this.#bindRow(binding, kvRow, 'row')
      binding.input('start', own(new OrtTensor(this.#environment, 'int64', [1], BigInt64Array.of(BigInt(start)))))
      binding.input('end', own(new OrtTensor(this.#environment, 'int64', [1], BigInt64Array.of(BigInt(end)))))
      binding.output('all', own(this.#hostTensor(this.#snapshotShape(count), data)))
    })
    return { start, end, bytes: data.byteLength, data }
  }

  /** Positions `[snapshot.start, end)`. */
  restore(row: number, snapshot: KvSnapshot, end: number): void {
    this.#check(row, end)
    if (end > snapshot.end || end < snapshot.start) {
      const has = `[${snapshot.start}, ${snapshot.end})`
      throw new RingletError('internal', `positions up to ${end} are asked of a snapshot of ${has}`)
    }
    if (end === snapshot.start) {
      return
    }
    this.#run(this.#write, (binding, own) => {
      binding.input('all', own(this.#hostTensor(this.#snapshotShape(snapshot.end - snapshot.start), snapshot.data)))
      binding.input('count', own(this.#scalar(end - snapshot.start)))
      this.#bindTarget(binding, own, row, snapshot.start, end)
    })
  }

  copyRow(from: number, to: number, positions: number): void {
    this.#check(from, positions)
    this.#check(to, positions)
    if (positions === 0 || from === to) {
      return
    }
    this.#run(this.#copy, (binding, own) => {
      this.#bindRow(binding, from, 'source')
      binding.input('count', own(this.#scalar(positions)))
      this.#bindTarget(binding, own, to, 0, positions)
    })
  }

  dispose(): void {
    for (const tensor of [...this.#ranges.values()].flat()) {
      tensor.dispose()
    }
    this.#ranges.clear()
    for (const session of [this.#save, this.#write, this.#copy]) {
      session.dispose()
    }
  }

  get #environment() {
    return this.#device.environment
  }

  get #rowBytes(): number {
    return kvRowBytes(this.#model, this.#maxPositions) / (2 * this.#model.decoder.layers.length)
  }

  #run(session: OrtSession, bind: (binding: OrtBinding, own: (tensor: OrtTensor) => OrtTensor) => void): void {
    const binding = new OrtBinding(this.#environment, session)
    const owned: OrtTensor[] = []
    try {
      bind(binding, (tensor) => {
        owned.push(tensor)
        return tensor
      })
      binding.run()
    } finally {
      binding.dispose()
      for (const tensor of owned) {
        tensor.dispose()
      }
    }
  }

  #bindRow(binding: OrtBinding, row: number, name: string): void {
    for (const [i, tensor] of this.#range(row, 1).entries()) {
      binding.input(`${name}.${i}`, tensor)
    }
  }

  /** Where `positions` of each head go: `[1, kvHeads, n, 3]`. Input and output are the same memory: the rest stays. */
  #bindTarget(
    binding: OrtBinding,
    own: (tensor: OrtTensor) => OrtTensor,
    row: number,
    start: number,
    end: number,
  ): void {
    const { kvHeads } = this.#model.decoder
    const count = end - start
    const places = new BigInt64Array(kvHeads * count * 3)
    for (let head = 0; head < kvHeads; head++) {
      for (let i = 0; i < count; i++) {
        places[(head * count + i) * 3 + 1] = BigInt(head)
        places[(head * count + i) * 3 + 2] = BigInt(start + i)
      }
    }
    binding.input('places', own(new OrtTensor(this.#environment, 'int64', [1, kvHeads, count, 3], places)))
    for (const [i, tensor] of this.#range(row, 1).entries()) {
      binding.input(`target.${i}`, tensor)
      binding.output(`written.${i}`, tensor)
    }
  }

  #scalar(value: number): OrtTensor {
    return new OrtTensor(this.#environment, 'int64', [1], BigInt64Array.of(BigInt(value)))
  }

  #hostTensor(shape: number[], data: Float32Array): OrtTensor {
    const { floats } = this.#model
    const array = floats === 'float32' ? data : new Uint16Array(data.buffer, data.byteOffset, data.length * 2)
    return new OrtTensor(this.#environment, floats, shape, array)
  }

  #snapshotShape(positions: number): number[] {
    const { kvHeads, headSize } = this.#model.decoder
    return [this.#addresses.length, kvHeads, positions, headSize]
  }

  #snapshotBytes(positions: number): number {
    return this.#snapshotShape(positions).reduce((a, b) => a * b, FLOAT_BYTES[this.#model.floats])
  }

  #range(first: number, count: number): OrtTensor[] {
    const key = `${first}:${count}`
    const known = this.#ranges.get(key)
    if (known !== undefined) {
      return known
    }
    const { kvHeads, headSize } = this.#model.decoder
    const offset = BigInt(first * this.#rowBytes)
    const shape = [count, kvHeads, this.#maxPositions, headSize]
    const tensors = this.#addresses.map((address) => this.#device.tensor(this.#model.floats, shape, address + offset))
    this.#ranges.set(key, tensors)
    return tensors
  }

  #check(row: number, positions: number): void {
    if (row < 0 || row >= this.#maxRows || positions < 0 || positions > this.#maxPositions) {
      const limits = `${this.#maxRows} rows of ${this.#maxPositions} positions`
      throw new RingletError('internal', `row ${row}, ${positions} positions: the KV cache has ${limits}`)
    }
  }
}

/** Positions `[start, end)` of a row, all arrays one after another. */
function saveModel({ decoder, floats }: DeviceModel, arrays: number): Uint8Array {
  const { kvHeads, headSize } = decoder
  const graph = new GraphWriter(floats, DEVICE_OPSET)
  const start = graph.input('start', 'int64', [1])
  const end = graph.input('end', 'int64', [1])
  const axis = graph.int64([2])
  const parts = Array.from({ length: arrays }, (_, i) => {
    const row = graph.input(`row.${i}`, 'float32', [1, kvHeads, 'max_positions', headSize])
    return graph.node('Slice', [row, start, end, axis])
  })
  graph.nodes('Concat', parts, { attributes: { axis: 0 } }, ['all'])
  graph.declareOutput('all', 'float32', [arrays, kvHeads, 'positions', headSize])
  return graph.toModel()
}

/** Writes the first `count` positions of a snapshot, or of another row, to `places` of a row. */
function writeModel({ decoder, floats }: DeviceModel, arrays: number, fromRow: boolean): Uint8Array {
  const { kvHeads, headSize } = decoder
  const graph = new GraphWriter(floats, DEVICE_OPSET)
  const count = graph.input('count', 'int64', [1])
  const places = graph.input('places', 'int64', [1, kvHeads, 'positions', 3])
  const slice = (value: string) => graph.node('Slice', [value, graph.int64([0]), count, graph.int64([2])])
  const parts = fromRow
    ? Array.from({ length: arrays }, (_, i) =>
        slice(graph.input(`source.${i}`, 'float32', [1, kvHeads, 'max_positions', headSize])),
      )
    : graph.nodes(
        'Split',
        [
          slice(graph.input('all', 'float32', [arrays, kvHeads, 'saved', headSize])),
          graph.int64(Array.from({ length: arrays }, () => 1)),
        ],
        { attributes: { axis: 0 }, outputs: arrays },
      )
  for (const [i, part] of parts.entries()) {
    const target = graph.input(`target.${i}`, 'float32', [1, kvHeads, 'max_positions', headSize])
    graph.nodes('ScatterND', [target, places, part], {}, [`written.${i}`])
    graph.declareOutput(`written.${i}`, 'float32', [1, kvHeads, 'max_positions', headSize])
  }
  return graph.toModel()
}
