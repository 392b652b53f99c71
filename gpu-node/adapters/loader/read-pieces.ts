/** A run of pieces of a packed file → shared memory, each piece's SHA-256 compared while it is still in the processor's cache. */

import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { DamagedContentError } from './damaged-content.ts'

/** One piece: small enough for the cache, large enough that a system call is nothing beside it. */
export const PIECE_BYTES = 256 * 1024

export interface ReadPiecesJob {
  path: string
  /** Where in the file the data starts. */
  dataStart: number
  /** All of the data's place; pieces go to their own places in it. */
  buffer: SharedArrayBuffer
  first: number
  /** SHA-256 of each, hex. */
  pieces: string[]
}

export function readPieces({ path, dataStart, buffer, first, pieces }: ReadPiecesJob): void {
  const handle = openSync(path, 'r')
  try {
    for (const [i, expected] of pieces.entries()) {
      const from = (first + i) * PIECE_BYTES
      const piece = new Uint8Array(buffer, from, Math.min(PIECE_BYTES, buffer.byteLength - from))
      for (let done = 0; done < piece.byteLength; ) {
        const read = readSync(handle, piece, done, piece.byteLength - done, dataStart + from + done)
        if (read === 0) {
          throw new DamagedContentError(`the packed file ends at byte ${dataStart + from + done}`)
        }
        done += read
      }
      if (createHash('sha256').update(piece).digest('hex') !== expected) {
        throw new DamagedContentError('the packed file is not what was written')
      }
    }
  } finally {
    closeSync(handle)
  }
}
