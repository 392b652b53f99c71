/**
 * The bytes of kept weights, in pieces of a huge page with a checksum each: mapped, so that they serve at once and are compared
 * piece by piece afterwards; or read into arrays and compared first, where files cannot be mapped.
 */

import { rmSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { RingletError } from '../../shared/errors.ts'
import { type SafetensorsEntry, SafetensorsError, type SafetensorsFile } from '../formats/safetensors.ts'
import { HUGE_PAGE_BYTES, type MappedFile } from '../ort/system-memory.ts'

const PIECE_BYTES = HUGE_PAGE_BYTES

export interface PieceLayout {
  path: string
  /** Of each piece from `dataStart` on; the last ends at `dataEnd`. */
  checksums: Uint32Array
  dataStart: number
  dataEnd: number
  /** From here on lies what is seldom read. */
  rareStart: number
}

export interface KeptPieces {
  bytesOf(entry: SafetensorsEntry): Uint8Array
  /** As `KeptWeights.settle`. */
  settle(): boolean
  dispose(): void
}

/** Checksums of a stream's pieces. */
export class PieceChecksums {
  readonly #list: number[] = []
  #checksum = 0
  #filled = 0

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const part = bytes.subarray(at, at + PIECE_BYTES - this.#filled)
      this.#checksum = crc32(part, this.#checksum)
      this.#filled += part.byteLength
      at += part.byteLength
      if (this.#filled === PIECE_BYTES) {
        this.#end()
      }
    }
  }

  finish(): Uint32Array {
    if (this.#filled > 0) {
      this.#end()
    }
    return Uint32Array.from(this.#list)
  }

  #end(): void {
    this.#list.push(this.#checksum)
    this.#checksum = 0
    this.#filled = 0
  }
}

export function keepMapped(file: MappedFile, layout: PieceLayout): KeptPieces {
  const { path, checksums, dataEnd, rareStart } = layout
  file.populate(0, rareStart)
  file.expect(rareStart - (rareStart % PAGE_BYTES), dataEnd - rareStart)
  let next = 0
  return {
    bytesOf: ({ begin, end }) => file.view(begin, end - begin),
    settle: () => {
      if (next === checksums.length) {
        return false
      }
      const { begin, length } = piece(layout, next)
      if (crc32(file.view(begin, length)) !== checksums[next]) {
        rmSync(path, { force: true })
        throw new RingletError('engine_failed', 'the weights kept from an earlier start are damaged; they are removed')
      }
      if (begin >= rareStart) {
        file.forget(begin, length)
      } else if (file.hasHugePages && length === PIECE_BYTES && begin + length <= rareStart) {
        file.makePrivate(begin)
      }
      next++
      return next < checksums.length
    },
    dispose: file.dispose,
  }
}

const PAGE_BYTES = 4096

/** In SharedArrayBuffers. */
export async function readIntoArrays(file: SafetensorsFile, layout: PieceLayout): Promise<KeptPieces> {
  const buffer = new Uint8Array(PIECE_BYTES)
  for (let i = 0; i < layout.checksums.length; i++) {
    const { begin, length } = piece(layout, i)
    if (crc32(await file.readBytes(begin, buffer.subarray(0, length))) !== layout.checksums[i]) {
      throw new SafetensorsError('the cached weights are damaged')
    }
  }
  const arrays = new Map<string, Uint8Array>()
  for (const { name, begin, end } of file.header.tensors.values()) {
    arrays.set(name, await file.readBytes(begin, new Uint8Array(new SharedArrayBuffer(end - begin))))
  }
  return {
    bytesOf: ({ name }) => arrays.get(name)!,
    settle: () => false,
    dispose: () => arrays.clear(),
  }
}

function piece({ dataStart, dataEnd }: PieceLayout, index: number): { begin: number; length: number } {
  const begin = dataStart + index * PIECE_BYTES
  return { begin, length: Math.min(PIECE_BYTES, dataEnd - begin) }
}

/** Every piece of the data has a checksum, and there is no other. */
export function checkPieces({ checksums, dataStart, dataEnd }: PieceLayout): void {
  const pieces = Math.ceil((dataEnd - dataStart) / PIECE_BYTES)
  if (checksums.length !== pieces) {
    throw new SafetensorsError(`the cached weights have ${checksums.length} checksums of ${pieces} pieces`)
  }
}
