/**
 * A packed adapter in a file: what a loader thread made, ready to be used again by one read. Its data is the adapter's buffers
 * one after the other; the header holds the adapter with each typed array replaced by its place in them.
 */

import { open } from 'node:fs/promises'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { PACKED_HEAD_BYTES, PACKED_MAGIC, type PackedHeader, PIECE_BYTES } from '../loader/packed-format.ts'
import type { PackedReaders } from '../loader/packed-readers.ts'

/** Of a cache line. */
const ALIGNMENT = 64

const ARRAYS = { Float32Array, Int8Array, Uint8Array, Int32Array } as const
type ArrayName = keyof typeof ARRAYS

export type PackedFileNotes = Pick<PackedHeader, 'rank' | 'contentKeys' | 'names'>

/** One of the adapter's buffers and its place in the data. */
interface Placed {
  buffer: ArrayBufferLike
  at: number
}

export interface PackedFilePlan {
  /** Of the whole file, and of the adapter's data in it. */
  bytes: number
  dataBytes: number
  buffers: readonly Placed[]
  toHeader: (pieces: readonly string[]) => Buffer<ArrayBuffer>
}

export function planPackedFile(packed: PackedAdapter, notes: PackedFileNotes): PackedFilePlan {
  const { adapter, buffers, dataBytes } = layOut(packed)
  const toHeader = (pieces: readonly string[]) =>
    Buffer.from(JSON.stringify({ ...notes, adapter, dataBytes, pieces: [...pieces] } satisfies PackedHeader))
  return { bytes: PACKED_HEAD_BYTES + toHeader(noHashes(dataBytes)).length + dataBytes, dataBytes, buffers, toHeader }
}

/** Hashes have one length, so the header's is known before them. */
function noHashes(dataBytes: number): string[] {
  return Array<string>(Math.ceil(dataBytes / PIECE_BYTES)).fill('0'.repeat(64))
}

/** Between pieces the thread is free for others. */
export async function writePackedFile(path: string, plan: PackedFilePlan): Promise<void> {
  const { bytes, dataBytes, buffers, toHeader } = plan
  const pieces = noHashes(dataBytes)
  const dataStart = bytes - dataBytes
  const handle = await open(path, 'w', 0o600)
  try {
    for (let index = 0; index < pieces.length; index++) {
      const from = index * PIECE_BYTES
      const piece = pieceOf(buffers, from, Math.min(PIECE_BYTES, dataBytes - from))
      pieces[index] = await sha256(piece)
      await handle.write(piece, 0, piece.length, dataStart + from)
    }
    const header = toHeader(pieces)
    const head = Buffer.alloc(PACKED_HEAD_BYTES)
    head.writeUInt32LE(PACKED_MAGIC, 0)
    head.writeUInt32LE(header.length, 4)
    head.write(await sha256(header), 8, 'hex')
    await handle.write(Buffer.concat([head, header]), 0, dataStart, 0)
  } finally {
    await handle.close()
  }
}

/** Out of shared memory, which hashes don't take. */
function pieceOf(buffers: readonly Placed[], from: number, length: number): Uint8Array<ArrayBuffer> {
  const piece = new Uint8Array(length)
  for (const { buffer, at } of buffers) {
    const begin = Math.max(at, from)
    const end = Math.min(at + buffer.byteLength, from + length)
    if (begin < end) {
      piece.set(new Uint8Array(buffer, begin - at, end - begin), begin - from)
    }
  }
  return piece
}

/** `dataBytes`: what it was when the file was written. Throws DamagedContentError for a file that is not as it was written. */
export async function readPackedFile(path: string, dataBytes: number, readers: PackedReaders): Promise<PackedAdapter> {
  const buffer = new SharedArrayBuffer(dataBytes)
  const { adapter } = await readers.read(path, buffer)
  return restore(adapter, buffer) as PackedAdapter
}

/** Each buffer whole, at a multiple of a cache line; arrays keep their places within. */
function layOut(packed: PackedAdapter) {
  const buffers: Placed[] = []
  let dataBytes = 0
  const placeOf = (buffer: ArrayBufferLike): number => {
    const known = buffers.find((candidate) => candidate.buffer === buffer)
    if (known !== undefined) {
      return known.at
    }
    const at = dataBytes
    buffers.push({ buffer, at })
    dataBytes += Math.ceil(buffer.byteLength / ALIGNMENT) * ALIGNMENT
    return at
  }
  const adapter: unknown = JSON.parse(
    JSON.stringify(packed, (_, value: unknown) => {
      if (!ArrayBuffer.isView(value)) {
        return value
      }
      const array = value as InstanceType<(typeof ARRAYS)[ArrayName]>
      return { $array: array.constructor.name, at: placeOf(array.buffer) + array.byteOffset, length: array.length }
    }),
  )
  return { adapter, buffers, dataBytes }
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

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return Buffer.from(await crypto.subtle.digest('SHA-256', bytes)).toString('hex')
}
