/** One tensor of a weight file as stored: row-major and gapless bytes in the file's dtype. */

import { FLOAT_BYTES, type FloatDtype, widenFloats } from '../formats/float16.ts'

export interface RawTensor {
  name: string
  dtype: FloatDtype
  shape: readonly number[]
  /** Over a SharedArrayBuffer. */
  bytes: Uint8Array
}

/** A weight file read whole. */
export interface WeightFile {
  /** The file's name in its directory. */
  file: string
  format: 'safetensors' | 'torch-zip' | 'torch-legacy'
  fileBytes: number
  tensors: RawTensor[]
  /** Tensors in formats that are no floats, by name. */
  otherTensors: string[]
}

export interface WeightFileLimits {
  maxFileBytes: number
  maxTensors: number
}

/** 4 GiB is rank 256 on every linear module of a 70-billion-parameter model in bf16; the tensors are those of 500 layers. */
export const WEIGHT_FILE_LIMITS: WeightFileLimits = { maxFileBytes: 4 * 1024 ** 3, maxTensors: 20_000 }

/** A file that is not what its name says; the message names the numbers in conflict. */
export class WeightFileError extends Error {
  override readonly name = 'WeightFileError'
}

export function elementsOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1)
}

/** The file's own bytes where they are float32 already, else numbers in what `allocate` gives. */
export function toFloat32(tensor: RawTensor, allocate: Allocate): Float32Array {
  const { bytes, dtype } = tensor
  const elements = bytes.byteLength / FLOAT_BYTES[dtype]
  if (dtype === 'F32' && bytes.byteOffset % 4 === 0) {
    return new Float32Array(bytes.buffer, bytes.byteOffset, elements)
  }
  const bytesWanted = elements * Float32Array.BYTES_PER_ELEMENT
  const place = allocate(bytesWanted)
  const out = new Float32Array(place.buffer, place.byteOffset, elements)
  widenFloats(dtype, bytes, out)
  return out
}

export function sharedFloats(elements: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(elements * 4))
}

export function sharedBytes(bytes: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(bytes))
}

/** Memory of that many bytes, at a multiple of 8; what is in it is not said. */
export type Allocate = (bytes: number) => Uint8Array

/** Memory that nobody else has. */
export const allocateShared: Allocate = sharedBytes

/** Text from a file, for a message. */
export function printable(text: string): string {
  return text.slice(0, 200).replace(/[^\x20-\x7e]/g, '?')
}
