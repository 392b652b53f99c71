/** The weight file of an adapter directory, read whole into shared memory; safetensors wins when both kinds are there. */

import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { isFloatDtype } from '../formats/float16.ts'
import { parseSafetensorsHeader, SafetensorsError } from '../formats/safetensors.ts'
import { type FileVersions, fileVersion } from './file-version.ts'
import { DamagedContentError } from './loader/damaged-content.ts'
import {
  type Allocate,
  allocateShared,
  printable,
  type RawTensor,
  WEIGHT_FILE_LIMITS,
  type WeightFile,
  WeightFileError,
  type WeightFileLimits,
} from './raw-tensor.ts'
import { isTorchLegacy, openTorchLegacy } from './torch-legacy.ts'
import { materialiseTensor } from './torch-tensor.ts'
import { isZip, openTorchZip, type TorchFile } from './torch-zip.ts'

export const CONFIG_FILE = 'adapter_config.json'
/** In the order of preference. */
export const WEIGHT_FILES = ['adapter_model.safetensors', 'adapter_model.bin'] as const

/** One read; also how long a synchronous read can hold its thread. */
const READ_BYTES = 8 * 1024 * 1024

/** Throws WeightFileError. Reads synchronously: call it in a loader thread. */
export async function readWeightFile(
  dir: string,
  limits: WeightFileLimits = WEIGHT_FILE_LIMITS,
  allocate: Allocate = allocateShared,
  versions?: FileVersions,
): Promise<WeightFile> {
  const found = openFirst(dir, WEIGHT_FILES, versions)
  if (found === undefined) {
    throw new WeightFileError(`the directory has neither ${WEIGHT_FILES.join(' nor ')}`)
  }
  let bytes: Uint8Array
  try {
    bytes = readOpened(found, limits.maxFileBytes, allocate)
  } finally {
    closeSync(found.handle)
  }
  return parseWeightFile(found.file, bytes, limits)
}

/** `bytes`: the whole file, over a SharedArrayBuffer. What the file is, its first bytes say; its name only whether it may be a pickle. */
export async function parseWeightFile(
  file: string,
  bytes: Uint8Array,
  limits: WeightFileLimits = WEIGHT_FILE_LIMITS,
): Promise<WeightFile> {
  if (file.endsWith('.safetensors')) {
    return parseSafetensors(file, bytes, limits)
  }
  if (isZip(bytes)) {
    return fromTorch(file, bytes, 'torch-zip', await openTorchZip(bytes, limits.maxTensors))
  }
  if (isTorchLegacy(bytes)) {
    return fromTorch(file, bytes, 'torch-legacy', openTorchLegacy(bytes, limits.maxTensors))
  }
  throw new WeightFileError(`${file} is neither a zip nor a legacy file of torch.save`)
}

function parseSafetensors(file: string, bytes: Uint8Array, limits: WeightFileLimits): WeightFile {
  const tensors: RawTensor[] = []
  const otherTensors: string[] = []
  try {
    const headerLimits = { maxHeaderBytes: 16 * 1024 * 1024, maxTensors: limits.maxTensors }
    // The header is copied out of shared memory: TextDecoder refuses shared memory.
    const headerBytes = Number(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(0, true))
    const head = bytes.slice(0, Math.min(bytes.byteLength, 8 + Math.min(headerBytes, headerLimits.maxHeaderBytes)))
    const header = parseSafetensorsHeader(head, bytes.byteLength, headerLimits)
    for (const entry of header.tensors.values()) {
      const { name, dtype, shape, begin, end } = entry
      if (isFloatDtype(dtype)) {
        tensors.push({ name, dtype, shape, bytes: bytes.subarray(begin, end) })
      } else {
        otherTensors.push(name)
      }
    }
  } catch (error) {
    if (error instanceof SafetensorsError || error instanceof RangeError) {
      throw new WeightFileError(`${file}: ${error.message}`, { cause: error })
    }
    throw error
  }
  return { file, format: 'safetensors', fileBytes: bytes.byteLength, tensors, otherTensors }
}

function fromTorch(
  file: string,
  bytes: Uint8Array,
  format: 'torch-zip' | 'torch-legacy',
  torch: TorchFile,
): WeightFile {
  const tensors: RawTensor[] = []
  const otherTensors: string[] = []
  let total = 0
  for (const [name, tensor] of torch.tensors) {
    if (typeof tensor.dtype !== 'string') {
      otherTensors.push(name)
      continue
    }
    const raw = materialiseTensor(name, tensor, tensor.dtype, torch.storage(tensor))
    total += raw.bytes.byteLength
    // Tensors may share a storage, but a small file must not describe an adapter larger than itself many times over.
    if (total > 2 * bytes.byteLength) {
      throw new WeightFileError(`the tensors of ${file} have more than twice its ${bytes.byteLength} bytes`)
    }
    tensors.push(raw)
  }
  return { file, format, fileBytes: bytes.byteLength, tensors, otherTensors }
}

/** A small text file of the directory; `undefined` when it is absent. */
export function readTextFile(dir: string, file: string, maxBytes: number, versions?: FileVersions): string | undefined {
  const found = openFirst(dir, [file], versions)
  if (found === undefined) {
    return undefined
  }
  try {
    return new TextDecoder().decode(readOpened(found, maxBytes, allocateShared).slice())
  } finally {
    closeSync(found.handle)
  }
}

interface Opened {
  file: string
  handle: number
  /** What it must be, if that is known. */
  version: string | undefined
}

/** With `versions` only what they name. */
function openFirst(dir: string, files: readonly string[], versions?: FileVersions): Opened | undefined {
  for (const file of versions === undefined ? files : files.filter((name) => Object.hasOwn(versions, name))) {
    try {
      // A FIFO would block the open for ever.
      const handle = openSync(join(dir, file), constants.O_RDONLY | constants.O_NONBLOCK)
      return { file, handle, version: versions?.[file] }
    } catch (error) {
      if (versions !== undefined) {
        throw new DamagedContentError(`${file} can't be opened any more`, { cause: error })
      }
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
        throw new WeightFileError(`${file} can't be opened: ${(error as NodeJS.ErrnoException).code}`)
      }
    }
  }
  return undefined
}

function readOpened(opened: Opened, maxBytes: number, allocate: Allocate): Uint8Array {
  const { handle, file } = opened
  checkVersion(opened)
  const stat = fstatSync(handle)
  if (!stat.isFile()) {
    throw new WeightFileError(`${printable(file)} is no regular file`)
  }
  if (stat.size > maxBytes) {
    throw new WeightFileError(`${printable(file)} has ${stat.size} bytes; the limit is ${maxBytes}`)
  }
  const bytes = allocate(stat.size)
  let done = 0
  while (done < stat.size) {
    const read = readSync(handle, bytes, done, Math.min(READ_BYTES, stat.size - done), done)
    if (read === 0) {
      throw new WeightFileError(`${printable(file)} was cut while being read, at byte ${done} of ${stat.size}`)
    }
    done += read
  }
  checkVersion(opened)
  return bytes
}

/** Before and after reading: so nothing was written in between. */
function checkVersion({ handle, file, version }: Opened): void {
  if (version !== undefined && fileVersion(fstatSync(handle, { bigint: true })) !== version) {
    throw new DamagedContentError(`${file} has changed since it was looked at`)
  }
}
