/**
 * The base's weights as the graph wants them, kept on disk so that the next start only reads a file: one safetensors file for
 * each model and format. A file that does not fit, whatever the reason, is no error: the weights are made anew and it is replaced.
 */

import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import pLimit from 'p-limit'
import {
  openSafetensors,
  type SafetensorsEntry,
  SafetensorsError,
  type SafetensorsFile,
} from '../formats/safetensors.ts'
import { type TensorToWrite, writeSafetensors } from '../formats/safetensors-writer.ts'
import { lockFile } from './lock-file.ts'

/** Raised whenever quantisation or this file's metadata change. */
const VERSION = '2'

/** As many reads at once as Node has threads for them. */
const READS_AT_ONCE = 4

export interface CachedWeight {
  name: string
  type: 'float32' | 'uint8'
  shape: readonly number[]
  /** In a SharedArrayBuffer. */
  data: Float32Array | Uint8Array
}

export interface WeightCacheKey {
  baseDigest: string
  /** `Checkpoint.stamp`: a weight file that was changed in place changes it. */
  stamp: string
  /** Format of the weights, e.g. `int8`. */
  format: string
  /** Says which matrices there are and what was folded into them; a change of the plan changes it. */
  layout: string
}

export interface WeightCache {
  /** `undefined` where there is nothing, or nothing that fits; `onMiss` hears why. */
  read(): Promise<CachedWeight[] | undefined>
  /** A full or read-only disk costs the next start its time, not this one its life; `onMiss` hears of it. */
  write(weights: readonly CachedWeight[]): Promise<void>
}

export function weightCache(
  folder: string,
  key: WeightCacheKey,
  onMiss: (why: string) => void = () => {},
): WeightCache {
  const path = join(folder, `${key.baseDigest.slice(0, 32)}-${key.format}.safetensors`)
  const identity = JSON.stringify([VERSION, key.baseDigest, key.stamp, key.format, key.layout])
  return {
    read: async () => {
      try {
        return await readFile(path, identity)
      } catch (error) {
        if (error instanceof SafetensorsError || isFileError(error)) {
          onMiss((error as Error).message)
          return undefined
        }
        throw error
      }
    },
    write: async (weights) => {
      const tensors = weights.map(toTensor)
      const checksums = Object.fromEntries(tensors.map(({ name, bytes }) => [name, crc32(bytes)]))
      try {
        const unlock = await lockFile(`${path}.lock`, { signal: new AbortController().signal })
        await writeSafetensors(path, tensors, { identity, checksums: JSON.stringify(checksums) }).finally(unlock)
      } catch (error) {
        if (!isFileError(error)) {
          throw error
        }
        onMiss(`the weights could not be kept for the next start: ${error.message}`)
      }
    },
  }
}

async function readFile(path: string, identity: string): Promise<CachedWeight[]> {
  const file = await openSafetensors(path)
  try {
    const { metadata, tensors } = file.header
    if (metadata.get('identity') !== identity) {
      throw new SafetensorsError('the cached weights were made from another checkpoint or by another version')
    }
    const checksums = JSON.parse(metadata.get('checksums') ?? '{}') as Record<string, number>
    const limit = pLimit(READS_AT_ONCE)
    const entries = [...tensors.values()]
    return await Promise.all(entries.map((entry) => limit(() => readWeight(file, entry, checksums[entry.name]))))
  } finally {
    await file.close()
  }
}

async function readWeight(
  file: SafetensorsFile,
  { name, dtype, shape, begin, end }: SafetensorsEntry,
  checksum: number | undefined,
): Promise<CachedWeight> {
  const buffer = new SharedArrayBuffer(end - begin)
  const bytes = await file.readBytes(begin, new Uint8Array(buffer))
  if (crc32(bytes) !== checksum) {
    throw new SafetensorsError(`the cached weight '${name}' is damaged`)
  }
  return dtype === 'F32'
    ? { name, type: 'float32', shape, data: new Float32Array(buffer) }
    : { name, type: 'uint8', shape, data: bytes }
}

function toTensor({ name, type, shape, data }: CachedWeight): TensorToWrite {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  return { name, dtype: type === 'float32' ? 'F32' : 'U8', shape, bytes }
}

function isFileError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
}
