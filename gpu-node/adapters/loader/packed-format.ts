/**
 * The file of a packed adapter, what of it a loader thread makes, and reading it in a thread: magic · header length (u32 LE) · SHA-256 of the header · header
 * (JSON) · data. Every byte is compared with a hash, pieces of the data while they are still in the processor's cache.
 */

import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { DamagedContentError } from './damaged-content.ts'

export const PACKED_MAGIC = 0x4b_50_4c_52 // "RLPK"
export const PACKED_HEAD_BYTES = 8 + 32
/** Small enough for the cache, large enough that a system call is nothing beside it. */
export const PIECE_BYTES = 256 * 1024
const MAX_HEADER_BYTES = 16 * 1024 * 1024

export interface PackedHeader {
  rank: number
  contentKeys: string[]
  names: string[]
  /** The adapter, each typed array replaced by its place in the data. */
  adapter: unknown
  dataBytes: number
  /** SHA-256 of each piece, hex. */
  pieces: string[]
}

export const ARRAYS = { Float32Array, Int8Array, Uint8Array, Int32Array } as const
export type ArrayName = keyof typeof ARRAYS

/** What the file says of the adapter: the header without the notes, as JSON; and its data. */
export interface PackedImage {
  description: string
  data: SharedArrayBuffer
}

/** `packAdapter` puts all arrays of an adapter into one buffer, which is the file's data as it is. */
export function imageOf(packed: PackedAdapter): PackedImage {
  const buffers = new Set<ArrayBufferLike>()
  const adapter: unknown = JSON.parse(
    JSON.stringify(packed, (_, value: unknown) => {
      if (!ArrayBuffer.isView(value)) {
        return value
      }
      const array = value as InstanceType<(typeof ARRAYS)[ArrayName]>
      buffers.add(array.buffer)
      return { $array: array.constructor.name, at: array.byteOffset, length: array.length }
    }),
  )
  const [data, ...others] = buffers
  if (!(data instanceof SharedArrayBuffer) || others.length > 0) {
    throw new Error(`a packed adapter lies in one shared buffer; this one in ${buffers.size}`)
  }
  const pieces: string[] = []
  for (let from = 0; from < data.byteLength; from += PIECE_BYTES) {
    const piece = new Uint8Array(data, from, Math.min(PIECE_BYTES, data.byteLength - from))
    pieces.push(createHash('sha256').update(piece).digest('hex'))
  }
  const dataBytes = data.byteLength
  const description = JSON.stringify({ adapter, dataBytes, pieces } satisfies Partial<PackedHeader>)
  return { description, data }
}

/** `part` of `parts` of the data goes into its place in `buffer`; without a buffer the header alone is read. */
export interface ReadPackedJob {
  path: string
  buffer: SharedArrayBuffer | undefined
  part: number
  parts: number
}

/** Returns the header's text, which is much smaller to hand over than what it describes. Throws DamagedContentError. */
export function readPackedPart({ path, buffer, part, parts }: ReadPackedJob): string {
  const handle = openFile(path)
  try {
    const head = Buffer.from(readBytes(handle, 0, PACKED_HEAD_BYTES))
    const length = head.readUInt32LE(4)
    if (head.readUInt32LE(0) !== PACKED_MAGIC || length > MAX_HEADER_BYTES) {
      throw new DamagedContentError('the packed file starts with something else')
    }
    const text = Buffer.from(readBytes(handle, PACKED_HEAD_BYTES, length))
    compare(text, head.toString('hex', 8))
    const json = text.toString()
    if (buffer !== undefined) {
      // Written by this program, and its hash says that nothing changed.
      const { dataBytes, pieces } = JSON.parse(json) as PackedHeader
      if (dataBytes !== buffer.byteLength) {
        throw new DamagedContentError(`the packed file has ${dataBytes} bytes of data, not ${buffer.byteLength}`)
      }
      const share = Math.ceil(pieces.length / parts)
      readPieces(handle, PACKED_HEAD_BYTES + length, buffer, pieces, part * share, (part + 1) * share)
    }
    return json
  } finally {
    closeSync(handle)
  }
}

function readPieces(
  handle: number,
  dataStart: number,
  buffer: SharedArrayBuffer,
  pieces: readonly string[],
  first: number,
  end: number,
): void {
  for (let index = first; index < Math.min(end, pieces.length); index++) {
    const from = index * PIECE_BYTES
    const piece = new Uint8Array(buffer, from, Math.min(PIECE_BYTES, buffer.byteLength - from))
    fill(handle, piece, dataStart + from)
    compare(piece, pieces[index]!)
  }
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r')
  } catch (cause) {
    throw new DamagedContentError('the packed file is not there', { cause })
  }
}

function readBytes(handle: number, position: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length)
  fill(handle, bytes, position)
  return bytes
}

function fill(handle: number, target: Uint8Array, position: number): void {
  for (let done = 0; done < target.byteLength; ) {
    const read = readSync(handle, target, done, target.byteLength - done, position + done)
    if (read === 0) {
      throw new DamagedContentError(`the packed file ends at byte ${position + done}`)
    }
    done += read
  }
}

function compare(bytes: Uint8Array, expected: string): void {
  if (createHash('sha256').update(bytes).digest('hex') !== expected) {
    throw new DamagedContentError('the packed file is not what was written')
  }
}
