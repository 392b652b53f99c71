/** Takes named files out of a tar stream (POSIX ustar, as npm packs), without keeping it in memory or running any tool. */

import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'

const BLOCK = 512
/** No file of a provider package comes near. */
const MAX_FILE_BYTES = 2 ** 31

export interface TarEntry {
  name: string
  size: number
  /** `0`: a plain file. */
  type: string
}

/** `undefined`: a block of zeros, as at the end. Fails on a header whose checksum is wrong. */
export function readTarHeader(block: Uint8Array): TarEntry | undefined {
  if (block.every((byte) => byte === 0)) {
    return undefined
  }
  const text = (from: number, length: number): string => {
    const bytes = block.subarray(from, from + length)
    const end = bytes.indexOf(0)
    return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('utf8')
  }
  const octal = (from: number, length: number): number => {
    const digits = text(from, length).trim()
    return /^[0-7]+$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN
  }
  let sum = 0
  for (let i = 0; i < BLOCK; i++) {
    sum += i >= 148 && i < 156 ? 32 : block[i]!
  }
  if (octal(148, 8) !== sum) {
    throw new Error('the archive is damaged: a header has another checksum')
  }
  const size = octal(124, 12)
  if (!(size >= 0 && size <= MAX_FILE_BYTES)) {
    throw new Error(`the archive has an entry of ${size} bytes; at most ${MAX_FILE_BYTES} are taken`)
  }
  const prefix = text(257, 5) === 'ustar' ? text(345, 155) : ''
  return { name: prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`, size, type: text(156, 1) || '0' }
}

/** `targetOf`: the file to write an entry to, or `undefined` to pass over it. Returns the names written. */
export async function extractTar(
  source: AsyncIterable<Uint8Array>,
  targetOf: (name: string) => string | undefined,
): Promise<string[]> {
  const bytes = new ByteSource(source)
  const written: string[] = []
  while (await bytes.hasMore()) {
    const entry = readTarHeader(Buffer.concat(await collect(bytes.take(BLOCK))))
    if (entry === undefined) {
      continue
    }
    const target = entry.type === '0' ? targetOf(entry.name) : undefined
    if (target === undefined) {
      await bytes.skip(entry.size)
    } else {
      await pipeline(bytes.take(entry.size), createWriteStream(target))
      written.push(entry.name)
    }
    await bytes.skip((BLOCK - (entry.size % BLOCK)) % BLOCK)
  }
  return written
}

/** A stream of chunks, taken in pieces of any size. */
class ByteSource {
  readonly #chunks: AsyncIterator<Uint8Array>
  #rest: Uint8Array = new Uint8Array(0)

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#chunks = source[Symbol.asyncIterator]()
  }

  async hasMore(): Promise<boolean> {
    while (this.#rest.length === 0) {
      const next = await this.#chunks.next()
      if (next.done === true) {
        return false
      }
      this.#rest = next.value
    }
    return true
  }

  async *take(count: number): AsyncGenerator<Uint8Array> {
    let left = count
    while (left > 0) {
      if (!(await this.hasMore())) {
        throw new Error('the archive is damaged: it ends in the middle of an entry')
      }
      const part = this.#rest.subarray(0, left)
      this.#rest = this.#rest.subarray(part.length)
      left -= part.length
      yield part
    }
  }

  async skip(count: number): Promise<void> {
    for await (const _ of this.take(count)) {
      // Passed over.
    }
  }
}

async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array[]> {
  const all: Uint8Array[] = []
  for await (const chunk of chunks) {
    all.push(chunk)
  }
  return all
}
