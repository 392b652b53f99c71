/**
 * A packed adapter in a file: what a loader thread made, ready to be used again by one read. Layout: magic · header length (u32 LE) · SHA-256 of the header · header (JSON) ·
 * data, which is the adapter's buffers one after the other.
 */

import { type FileHandle, open } from 'node:fs/promises'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { DamagedContentError } from '../loader/damaged-content.ts'
import { PIECE_BYTES, type ReadPiecesJob } from '../loader/read-pieces.ts'

const MAGIC = 0x4b_50_4c_52 // "RLPK"
const HEAD_BYTES = 8 + 32
const ALIGNMENT = 64
const MAX_HEADER_BYTES = 16 * 1024 * 1024

const ARRAYS = { Float32Array, Int8Array, Uint8Array, Int32Array } as const
type ArrayName = keyof typeof ARRAYS

export interface PackedFileNotes {
  rank: number
  contentKeys: string[]
  names: string[]
}

/** One of the adapter's buffers and its place in the data. */
interface Placed {
  buffer: ArrayBufferLike
  at: number
}

interface Header extends PackedFileNotes {
  /** The adapter, each typed array replaced by its place in the data. */
  adapter: unknown
  dataBytes: number
  /** SHA-256 of each piece, hex. */
  pieces: string[]
}

/** Returns the file's size. Between pieces the thread is free for others. */
export async function writePackedFile(path: string, packed: PackedAdapter, notes: PackedFileNotes): Promise<number> {
  const { adapter, buffers, dataBytes } = layOut(packed)
  const toHeader = (pieces: string[]) =>
    Buffer.from(JSON.stringify({ ...notes, adapter, dataBytes, pieces } satisfies Header))
  // Hashes have one length, so the header's is known before them.
  const pieces = Array<string>(Math.ceil(dataBytes / PIECE_BYTES)).fill('0'.repeat(64))
  const dataStart = HEAD_BYTES + toHeader(pieces).length
  const handle = await open(path, 'w', 0o600)
  try {
    for (let index = 0; index < pieces.length; index++) {
      const from = index * PIECE_BYTES
      const piece = pieceOf(buffers, from, Math.min(PIECE_BYTES, dataBytes - from))
      pieces[index] = await sha256(piece)
      await handle.write(piece, 0, piece.length, dataStart + from)
    }
    const header = toHeader(pieces)
    const head = Buffer.alloc(HEAD_BYTES)
    head.writeUInt32LE(MAGIC, 0)
    head.writeUInt32LE(header.length, 4)
    head.write(await sha256(header), 8, 'hex')
    await handle.write(Buffer.concat([head, header]), 0, dataStart, 0)
    return dataStart + dataBytes
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

/** Reads pieces into place: `PieceReaders.read`. */
export type ReadPieces = (job: ReadPiecesJob) => Promise<void>

/** Throws DamagedContentError for a file that is not as it was written. */
export async function readPackedFile(path: string, readPieces: ReadPieces): Promise<PackedAdapter> {
  const { header, dataStart } = await withHeader(path, (header, dataStart) => ({ header, dataStart }))
  const buffer = new SharedArrayBuffer(header.dataBytes)
  await readPieces({ path, dataStart, buffer, first: 0, pieces: header.pieces })
  return restore(header.adapter, buffer)
}

export async function readPackedNotes(path: string): Promise<PackedFileNotes> {
  return withHeader(path, ({ rank, contentKeys, names }) => ({ rank, contentKeys, names }))
}

async function withHeader<T>(path: string, use: (header: Header, dataStart: number) => T): Promise<T> {
  const handle = await open(path, 'r').catch((error: unknown) => {
    throw new DamagedContentError('the packed file is not there', { cause: error })
  })
  try {
    const head = Buffer.from(await readFully(handle, 0, HEAD_BYTES))
    const length = head.readUInt32LE(4)
    if (head.readUInt32LE(0) !== MAGIC || length > MAX_HEADER_BYTES) {
      throw new DamagedContentError('the packed file starts with something else')
    }
    const bytes = await readFully(handle, HEAD_BYTES, length)
    await compare(bytes, head.toString('hex', 8))
    // Written by this file, and its hash says that nothing changed.
    return use(JSON.parse(new TextDecoder().decode(bytes)) as Header, HEAD_BYTES + length)
  } finally {
    await handle.close()
  }
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

function restore(adapter: unknown, data: SharedArrayBuffer): PackedAdapter {
  const revived: unknown = JSON.parse(JSON.stringify(adapter), (_, value: unknown) => {
    if (typeof value !== 'object' || value === null || !('$array' in value)) {
      return value
    }
    const { $array, at, length } = value as { $array: ArrayName; at: number; length: number }
    const create = ARRAYS[$array] as new (data: SharedArrayBuffer, at: number, length: number) => ArrayBufferView
    return new create(data, at, length)
  })
  return revived as PackedAdapter
}

async function readFully(handle: FileHandle, position: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length)
  let done = 0
  while (done < length) {
    const { bytesRead } = await handle.read(bytes, done, length - done, position + done)
    if (bytesRead === 0) {
      throw new DamagedContentError(`the packed file ends at byte ${position + done}`)
    }
    done += bytesRead
  }
  return bytes
}

async function compare(bytes: Uint8Array<ArrayBuffer>, expected: string): Promise<void> {
  if ((await sha256(bytes)) !== expected) {
    throw new DamagedContentError('the packed file is not what was written')
  }
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return Buffer.from(await crypto.subtle.digest('SHA-256', bytes)).toString('hex')
}
