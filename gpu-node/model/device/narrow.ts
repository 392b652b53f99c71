/** Float32 into a device's sixteen-bit numbers, to the nearest and ties to even. */

import { narrowToHalves } from '../../formats/to-float16.ts'
import type { DeviceFloats } from './device-form.ts'

export type NarrowFloats = Exclude<DeviceFloats, 'float32'>

/** For messages: where they end. */
export const LARGEST: Record<NarrowFloats, string> = { float16: "float16's 65504", bfloat16: "bfloat16's 3.39e38" }
/** Bits of 1. */
export const ONE_BITS: Record<NarrowFloats, number> = { float16: 0x3c00, bfloat16: 0x3f80 }

/** Writes `values` to `out[at …]`; returns how many became infinite though they were finite. */
export function narrow(values: Float32Array, out: Uint16Array, floats: NarrowFloats, at = 0): number {
  return floats === 'float16' ? narrowToHalves(values, out, at) : narrowToBfloat16(values, out, at)
}

/** The upper half of a float32's bits, rounded. */
export function bfloatBits(bits: number): number {
  const magnitude = bits & 0x7fffffff
  // A NaN stays one, whatever its payload.
  return magnitude > 0x7f800000 ? (bits >>> 16) | 0x40 : ((bits >>> 0) + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

function narrowToBfloat16(values: Float32Array, out: Uint16Array, at: number): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  let overflows = 0
  for (let i = 0; i < bits.length; i++) {
    const narrowed = bfloatBits(bits[i]!)
    out[at + i] = narrowed
    overflows += (narrowed & 0x7fff) === 0x7f80 && (bits[i]! & 0x7fffffff) < 0x7f800000 ? 1 : 0
  }
  return overflows
}
