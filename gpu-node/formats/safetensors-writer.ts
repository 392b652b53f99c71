/**
 * Writes safetensors files, tensor by tensor. The file appears under its name only when it is whole; until then it is
 * `<name>.partial`, which the next writer overwrites: one writer of a name at a time.
 */

import { open, rename, rm } from 'node:fs/promises'
import { DTYPE_BYTES, type SafetensorsDtype } from './safetensors.ts'

export interface TensorToWrite {
  name: string
  dtype: SafetensorsDtype
  shape: readonly number[]
  /** Little-endian; may lie in a SharedArrayBuffer. */
  bytes: Uint8Array
}

/** The data starts at a multiple of it, so that readers may map the file. */
const ALIGNMENT = 64

export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  // Larger elements first: every tensor then starts at a multiple of its element.
  const ordered = [...tensors].sort((a, b) => DTYPE_BYTES[b.dtype] - DTYPE_BYTES[a.dtype])
  const temporary = `${path}.partial`
  const handle = await open(temporary, 'w')
  try {
    await handle.writeFile(header(ordered, metadata))
    for (const { bytes } of ordered) {
      await handle.writeFile(bytes)
    }
    await handle.close()
    await rename(temporary, path)
  } catch (error) {
    await handle.close()
    await rm(temporary, { force: true })
    throw error
  }
}

function header(tensors: readonly TensorToWrite[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const entries: [string, unknown][] = []
  let end = 0
  for (const { name, dtype, shape, bytes } of tensors) {
    const elements = shape.reduce((product, size) => product * size, 1)
    if (elements * DTYPE_BYTES[dtype] !== bytes.byteLength) {
      throw new RangeError(`'${name}' ${dtype} [${shape.join(', ')}] is not ${bytes.byteLength} bytes`)
    }
    entries.push([name, { dtype, shape, data_offsets: [end, end + bytes.byteLength] }])
    end += bytes.byteLength
  }
  const json = Buffer.from(JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(entries) }))
  const padded = Math.ceil((8 + json.length) / ALIGNMENT) * ALIGNMENT
  const result = Buffer.alloc(padded, ' ')
  result.writeBigUInt64LE(BigInt(padded - 8))
  json.copy(result, 8)
  return result
}
