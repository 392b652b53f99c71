/** A window on a torch storage (offset, shape, strides) → row-major, gapless bytes. Every number is checked first. */

import { FLOAT_BYTES, type FloatDtype } from '../formats/float16.ts'
import { elementsOf, printable, type RawTensor, sharedBytes, WeightFileError } from './raw-tensor.ts'
import type { StorageDtype, TorchTensor } from './torch-pickle.ts'

/** `storage`: the bytes of the tensor's storage. */
export function materialiseTensor(
  name: string,
  tensor: TorchTensor,
  dtype: FloatDtype,
  storage: Uint8Array,
): RawTensor {
  const size = FLOAT_BYTES[dtype]
  const held = Math.floor(storage.byteLength / size)
  const elements = elementsOf(tensor.shape)
  const last = tensor.shape.reduce((at, length, i) => at + (length - 1) * tensor.strides[i]!, tensor.offset)
  if (elements > 0 && last >= held) {
    const window = `offset ${tensor.offset}, shape [${tensor.shape}], strides [${tensor.strides}]`
    throw new WeightFileError(`tensor '${printable(name)}' (${window}) reaches past its storage of ${held} elements`)
  }
  // An expanded tensor (stride 0) repeats elements: a few bytes of file would fill any memory.
  if (elements > held) {
    throw new WeightFileError(`tensor '${printable(name)}' has ${elements} elements on a storage of ${held}`)
  }
  const bytes = isGapless(tensor)
    ? storage.subarray(tensor.offset * size, (tensor.offset + elements) * size)
    : gather(tensor, elements, size, storage)
  return { name, dtype, shape: tensor.shape, bytes }
}

export function storageBytes(tensor: TorchTensor): number {
  const { storage } = tensor
  return storage.dtype === undefined ? storage.size : storage.size * dtypeBytes(storage.dtype)
}

function dtypeBytes(dtype: StorageDtype): number {
  return typeof dtype === 'string' ? FLOAT_BYTES[dtype] : dtype.bytes
}

function isGapless(tensor: TorchTensor): boolean {
  let expected = 1
  for (let i = tensor.shape.length - 1; i >= 0; i--) {
    const length = tensor.shape[i]!
    // A dimension of one element is never stepped over, so its stride may be anything.
    if (length !== 1 && tensor.strides[i] !== expected) {
      return false
    }
    expected *= length
  }
  return true
}

/** Element by element in row-major order; `position` counts like an odometer. */
function gather(tensor: TorchTensor, elements: number, size: number, storage: Uint8Array): Uint8Array {
  const out = sharedBytes(elements * size)
  const position = tensor.shape.map(() => 0)
  let from = tensor.offset
  for (let to = 0; to < elements; to++) {
    for (let b = 0; b < size; b++) {
      out[to * size + b] = storage[from * size + b]!
    }
    for (let axis = position.length - 1; axis >= 0; axis--) {
      position[axis]!++
      from += tensor.strides[axis]!
      if (position[axis]! < tensor.shape[axis]!) {
        break
      }
      from -= tensor.shape[axis]! * tensor.strides[axis]!
      position[axis] = 0
    }
  }
  return out
}
