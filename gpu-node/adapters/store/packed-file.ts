/**
 * A packed adapter in a file: what a loader thread made, ready to be used again by one read. Its data is the adapter's buffer;
 * the header holds the adapter with each typed array replaced by its place in it. The loader thread has made the header's
 * larger part and all hashes, so that writing takes the main thread no time.
 */

import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { ARRAYS, type ArrayName, PACKED_HEAD_BYTES, PACKED_MAGIC, type PackedImage } from '../loader/packed-format.ts'
import type { PackedReaders } from '../loader/packed-readers.ts'

export interface PackedFileNotes {
  rank: number
  contentKeys: string[]
  names: string[]
}

/** The parts of the file, in order. */
export type PackedFileParts = readonly [head: Uint8Array, header: Uint8Array, data: Uint8Array]

export function planPackedFile({ description, data }: PackedImage, notes: PackedFileNotes): PackedFileParts {
  // Two objects' members as one object.
  const header = Buffer.from(`${JSON.stringify(notes).slice(0, -1)},${description.slice(1)}`)
  const head = Buffer.alloc(PACKED_HEAD_BYTES)
  head.writeUInt32LE(PACKED_MAGIC, 0)
  head.writeUInt32LE(header.length, 4)
  head.write(createHash('sha256').update(header).digest('hex'), 8, 'hex')
  return [head, header, new Uint8Array(data)]
}

export async function writePackedFile(path: string, parts: PackedFileParts): Promise<void> {
  const handle = await open(path, 'w', 0o600)
  try {
    for (const part of parts) {
      for (let done = 0; done < part.byteLength; ) {
        done += (await handle.write(part, done)).bytesWritten
      }
    }
  } finally {
    await handle.close()
  }
}

/** `dataBytes`: what it was when the file was written. Throws DamagedContentError for a file that is not as it was written. */
export async function readPackedFile(path: string, dataBytes: number, readers: PackedReaders): Promise<PackedAdapter> {
  const buffer = new SharedArrayBuffer(dataBytes)
  const { adapter } = await readers.read(path, buffer)
  return restore(adapter, buffer) as PackedAdapter
}

/** Puts arrays over `data` where their places are; the header was parsed for this call alone. */
function restore(value: unknown, data: SharedArrayBuffer): unknown {
  if (typeof value !== 'object' || value === null) {
    return value
  }
  if ('$array' in value) {
    const { $array, at, length } = value as { $array: ArrayName; at: number; length: number }
    const create = ARRAYS[$array] as new (data: SharedArrayBuffer, at: number, length: number) => ArrayBufferView
    return new create(data, at, length)
  }
  const members = value as Record<string, unknown>
  for (const [name, member] of Object.entries(members)) {
    members[name] = restore(member, data)
  }
  return members
}
