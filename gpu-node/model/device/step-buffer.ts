/** A step's inputs in one piece of memory on the host and one on the device, so that they go up in one copy. */

import type { OrtTensor } from '../../ort/tensor.ts'
import type { DeviceContext, StagingMemory } from './device-context.ts'

export interface Section {
  type: 'int32' | 'int64' | 'float16' | 'bfloat16' | 'float32' | 'uint8'
  elements: number
}

const BYTES = { int32: 4, int64: 8, float16: 2, bfloat16: 2, float32: 4, uint8: 1 } as const
const ALIGNMENT = 256

export class StepBuffer<Name extends string> {
  readonly #device: DeviceContext
  readonly #staging: StagingMemory
  readonly #address: bigint
  readonly #offsets = new Map<Name, { offset: number; section: Section }>()
  readonly #bytes: number
  /** By name, first element and shape. */
  readonly #views = new Map<string, OrtTensor>()

  constructor(device: DeviceContext, sections: Readonly<Record<Name, Section>>) {
    this.#device = device
    let bytes = 0
    for (const [name, section] of Object.entries(sections) as [Name, Section][]) {
      this.#offsets.set(name, { offset: bytes, section })
      bytes += Math.ceil((section.elements * BYTES[section.type]) / ALIGNMENT) * ALIGNMENT
    }
    this.#bytes = bytes
    this.#staging = device.staging(bytes)
    this.#staging.bytes.fill(0)
    this.#address = device.allocate(bytes)
    this.upload()
  }

  int32(name: Name): Int32Array {
    const { buffer, at, section } = this.#place(name)
    return new Int32Array(buffer, at, section.elements)
  }

  int64(name: Name): BigInt64Array {
    const { buffer, at, section } = this.#place(name)
    return new BigInt64Array(buffer, at, section.elements)
  }

  bytes(name: Name): Uint8Array {
    const { buffer, at, section } = this.#place(name)
    return new Uint8Array(buffer, at, section.elements)
  }

  /** Floats as they are; halves as their bits. */
  floats(name: Name): Float32Array | Uint16Array {
    const { buffer, at, section } = this.#place(name)
    return section.type === 'float32'
      ? new Float32Array(buffer, at, section.elements)
      : new Uint16Array(buffer, at, section.elements)
  }

  /** The device's tensor over a section from element `first` on. */
  view(name: Name, shape: readonly number[], first = 0): OrtTensor {
    const key = `${name}@${first}:${shape.join('x')}`
    const known = this.#views.get(key)
    if (known !== undefined) {
      return known
    }
    const { offset, section } = this.#offsets.get(name)!
    const address = this.#address + BigInt(offset + first * BYTES[section.type])
    const tensor = this.#device.tensor(section.type, shape, address)
    this.#views.set(key, tensor)
    return tensor
  }

  /** Blocks until the device has what the arrays hold now. */
  upload(): void {
    this.#device.uploadStaged(this.#staging, this.#bytes, this.#address)
  }

  dispose(): void {
    for (const tensor of this.#views.values()) {
      tensor.dispose()
    }
    this.#views.clear()
  }

  #place(name: Name) {
    const { offset, section } = this.#offsets.get(name)!
    const { bytes } = this.#staging
    return { buffer: bytes.buffer, at: bytes.byteOffset + offset, section }
  }
}
