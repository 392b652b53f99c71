/**
 * torch.save before 1.6: five things in a row. Magic number (pickle) · protocol 1001 (pickle) · system info (pickle) ·
 * state dict (pickle) · storage keys (pickle) · for each key: u64 LE element count, then the elements.
 */

import { printable, WeightFileError } from './raw-tensor.ts'
import { MAX_PICKLE_BYTES, parsePickle, parseStateDict, type TorchTensor } from './torch-pickle.ts'
import { storageBytes } from './torch-tensor.ts'
import type { TorchFile } from './torch-zip.ts'

/** The pickle of 0x1950a86a20f9469cfc6c: PROTO 2, LONG1 of ten bytes, STOP. */
const MAGIC = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e]
const PROTOCOL = 1001

export function isTorchLegacy(file: Uint8Array): boolean {
  return MAGIC.every((byte, i) => file[i] === byte)
}

export function openTorchLegacy(file: Uint8Array, maxTensors: number): TorchFile {
  // A copy out of shared memory, for TextDecoder; the pickles stand before the data, within the limit.
  const head = file.slice(0, Math.min(file.byteLength, MAX_PICKLE_BYTES))
  const { value: protocol, end: afterProtocol } = parsePickle(head, MAGIC.length)
  if (protocol !== PROTOCOL) {
    const given = typeof protocol === 'number' ? protocol : 'no number'
    throw new WeightFileError(`torch's legacy protocol is ${given}; known: ${PROTOCOL}`)
  }
  const { value: system, end: afterSystem } = parsePickle(head, afterProtocol)
  if (!(system instanceof Map) || system.get('little_endian') !== true) {
    throw new WeightFileError('the file does not say that it was written on a little-endian machine')
  }
  const { value: tensors, end: afterTensors } = parseStateDict(head, afterSystem)
  const { value: keys, end: afterKeys } = parsePickle(head, afterTensors)
  if (!Array.isArray(keys) || keys.length > maxTensors || !keys.every((key) => typeof key === 'string')) {
    throw new WeightFileError(`the file has no list of at most ${maxTensors} storage keys`)
  }
  const storages = readStorages(file, afterKeys, keys as string[], tensors)
  return {
    tensors,
    storage: (tensor) => {
      const bytes = storages.get(tensor.storage.key)
      if (bytes === undefined) {
        throw new WeightFileError(`the file has no storage '${printable(tensor.storage.key)}'`)
      }
      return bytes
    },
  }
}

function readStorages(
  file: Uint8Array,
  start: number,
  keys: string[],
  tensors: Map<string, TorchTensor>,
): Map<string, Uint8Array> {
  const described = new Map([...tensors.values()].map((tensor) => [tensor.storage.key, tensor]))
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const storages = new Map<string, Uint8Array>()
  let at = start
  for (const key of keys) {
    const tensor = described.get(key)
    if (tensor === undefined) {
      throw new WeightFileError(`storage '${printable(key)}' belongs to no tensor, so its size is unknown`)
    }
    if (at + 8 > file.byteLength) {
      throw new WeightFileError(`the file ends at byte ${file.byteLength}, before storage '${printable(key)}'`)
    }
    const elements = view.getBigUint64(at, true)
    if (elements !== BigInt(tensor.storage.size)) {
      const said = tensor.storage.size
      throw new WeightFileError(`storage '${printable(key)}' has ${elements} elements; its pickle says ${said}`)
    }
    const end = at + 8 + storageBytes(tensor)
    if (end > file.byteLength) {
      throw new WeightFileError(`storage '${printable(key)}' ends at byte ${end} of ${file.byteLength}`)
    }
    storages.set(key, file.subarray(at + 8, end))
    at = end
  }
  if (at !== file.byteLength) {
    throw new WeightFileError(`the storages end at byte ${at}; the file has ${file.byteLength}`)
  }
  return storages
}
