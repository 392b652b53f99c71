/**
 * Writes safetensors files, all tensors known or one by one. The file appears under its name only when it is whole; until then it
 * is `<name>.partial`, which the next writer replaces: one writer of a name at a time.
 */

import { renameSync, rmSync } from 'node:fs'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
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
    const entries = new Entries()
    for (const tensor of ordered) {
      entries.add(tensor)
    }
    await handle.writeFile(entries.header(metadata))
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

export interface SafetensorsWriter {
  /** Tensors follow each other as they are added. `eachPart` sees the bytes, some at a time, before they are written. */
  add(tensor: TensorToWrite, eachPart?: (bytes: Uint8Array) => void): Promise<void>
  /** On the disk when it resolves. */
  finish(metadata?: Readonly<Record<string, string>>): Promise<void>
  abandon(): Promise<void>
  /** Takes the unfinished file away at once: the name is free for another writer. `add` and `finish` fail from then on. */
  release(): void
}

/** `headerBytes`: room for the header, which is written last; the data starts there. */
export async function openSafetensorsWriter(path: string, headerBytes: number): Promise<SafetensorsWriter> {
  const temporary = `${path}.partial`
  // A writer that was released may still have a write under way into the file that it knew by this name.
  await rm(temporary, { force: true })
  const handle = await open(temporary, 'wx')
  const entries = new Entries()
  let position = headerBytes
  let owned = true
  const assertOwned = (): void => {
    if (!owned) {
      throw new Error(`${temporary} was abandoned`)
    }
  }
  return {
    add: async (tensor, eachPart = () => {}) => {
      entries.add(tensor)
      position += await writeAt(handle, tensor.bytes, position, (part) => {
        assertOwned()
        eachPart(part)
      })
    },
    finish: async (metadata = {}) => {
      await writeAt(handle, entries.header(metadata, headerBytes), 0, assertOwned)
      await handle.sync()
      await handle.close()
      // At one go, as the name may be another writer's otherwise.
      assertOwned()
      renameSync(temporary, path)
      owned = false
    },
    abandon: async () => {
      await handle.close()
      if (owned) {
        await rm(temporary, { force: true })
      }
    },
    release: () => {
      if (owned) {
        owned = false
        rmSync(temporary, { force: true })
      }
    },
  }
}

const WRITE_BYTES = 2 * 1024 * 1024

async function writeAt(
  handle: FileHandle,
  bytes: Uint8Array,
  position: number,
  eachPart: (bytes: Uint8Array) => void,
): Promise<number> {
  for (let done = 0; done < bytes.byteLength; ) {
    const part = bytes.subarray(done, done + WRITE_BYTES)
    eachPart(part)
    done += await writeFully(handle, part, position + done)
  }
  return bytes.byteLength
}

async function writeFully(handle: FileHandle, bytes: Uint8Array, position: number): Promise<number> {
  for (let done = 0; done < bytes.byteLength; ) {
    done += (await handle.write(bytes, done, bytes.byteLength - done, position + done)).bytesWritten
  }
  return bytes.byteLength
}

class Entries {
  readonly #entries: Record<string, unknown> = {}
  #end = 0

  add({ name, dtype, shape, bytes }: TensorToWrite): void {
    const elements = shape.reduce((product, size) => product * size, 1)
    if (elements * DTYPE_BYTES[dtype] !== bytes.byteLength) {
      throw new RangeError(`'${name}' ${dtype} [${shape.join(', ')}] is not ${bytes.byteLength} bytes`)
    }
    const begin = this.#end
    this.#end += bytes.byteLength
    this.#entries[name] = { dtype, shape, data_offsets: [begin, this.#end] }
  }

  /** `room`: its length, when that is fixed already. */
  header(metadata: Readonly<Record<string, string>>, room?: number): Uint8Array {
    const json = Buffer.from(JSON.stringify({ __metadata__: metadata, ...this.#entries }))
    const padded = room ?? Math.ceil((8 + json.length) / ALIGNMENT) * ALIGNMENT
    if (8 + json.length > padded) {
      throw new RangeError(`the header has ${8 + json.length} bytes; there is room for ${padded}`)
    }
    const result = Buffer.alloc(padded, ' ')
    result.writeBigUInt64LE(BigInt(padded - 8))
    json.copy(result, 8)
    return result
  }
}
