/**
 * Packed adapters on disk, so that what was evicted from RAM comes back by one read: `packed/<key>/<digest>`. The key stands
 * for everything besides the adapter that packing depends on (base, layout, code); files of other keys are removed.
 */

import { mkdir, readdir, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import type { PackedAdapter } from '../../model/packed-adapter.ts'
import { DamagedContentError } from '../loader/damaged-content.ts'
import type { PackedImage } from '../loader/packed-format.ts'
import type { PackedReaders } from '../loader/packed-readers.ts'
import { type PackedFiles, TOUCH_INTERVAL_MS } from './disk-tier.ts'
import type { Evictable } from './eviction.ts'
import { type PackedFileNotes, planPackedFile, readPackedFile, writePackedFile } from './packed-file.ts'

export interface PackedTierOptions {
  /** The disk tier's directory. */
  directory: string
  key: string
  now: () => number
  /** Room within the disk tier's budget. */
  makeRoom: (bytes: number, tenantId: string) => boolean
  readers: PackedReaders
  isPinned: (digest: string) => boolean
  onEvict: (digest: string) => void
}

interface PackedEntry {
  bytes: number
  dataBytes: number
  rank: number
  lastUsed: number
  /** When the file's time was last set to that of its use. */
  touched: number
  tenantId: string
  notes: PackedFileNotes
}

/** Tells these files from content of the same digest. */
const PREFIX = 'packed '
/** Adapters that wait to be written stay in memory so long, beyond the RAM tier's budget; one may always wait. */
const MAX_WAITING_BYTES = 64 * 1024 * 1024

export class PackedTier implements PackedFiles {
  readonly #options: PackedTierOptions
  readonly #entries = new Map<string, PackedEntry>()
  #writing: Promise<void> = Promise.resolve()
  #waitingBytes = 0
  /** Who used last what waits to be written, and when. */
  readonly #waiting = new Map<string, { lastUsed: number; tenantId: string }>()
  /** Of the file being written: reserved before its first byte. */
  #reservedBytes = 0

  private constructor(options: PackedTierOptions) {
    this.#options = options
  }

  static async open(options: PackedTierOptions): Promise<PackedTier> {
    const tier = new PackedTier(options)
    const root = join(options.directory, 'packed')
    await mkdir(join(root, options.key), { recursive: true, mode: 0o700 })
    for (const name of await readdir(root)) {
      if (name !== options.key) {
        await rm(join(root, name), { recursive: true, force: true })
      }
    }
    for (const name of await readdir(join(root, options.key))) {
      await tier.#scan(name)
    }
    return tier
  }

  get(digest: string): PackedEntry | undefined {
    return this.#entries.get(digest)
  }

  entries(): IterableIterator<[string, PackedEntry]> {
    return this.#entries.entries()
  }

  /** It was used, here or in RAM: what never leaves RAM must not be the first to leave the disk. */
  touch(digest: string, tenantId: string, now = this.#options.now()): void {
    if (this.#waiting.has(digest)) {
      this.#waiting.set(digest, { lastUsed: now, tenantId })
    }
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return
    }
    entry.tenantId = tenantId
    entry.lastUsed = now
    if (now - entry.touched >= TOUCH_INTERVAL_MS) {
      entry.touched = now
      const set = () => utimes(this.#path(digest), now / 1000, now / 1000)
      // A failure costs a stale "last used" after the next start.
      this.#writing = this.#writing.then(set).catch(() => undefined)
    }
  }

  /** Throws DamagedContentError; the file is gone then. */
  async read(digest: string, tenantId: string): Promise<PackedAdapter> {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      throw new DamagedContentError('the packed file has left the disk meanwhile')
    }
    this.touch(digest, tenantId)
    try {
      return await readPackedFile(this.#path(digest), entry.dataBytes, this.#options.readers)
    } catch (error) {
      if (error instanceof DamagedContentError) {
        await this.remove(digest)
      }
      throw error
    }
  }

  /** Later, and only where there is room: it saves time, and nothing depends on it. */
  keep(digest: string, image: PackedImage, notes: PackedFileNotes, tenantId: string): void {
    const bytes = image.data.byteLength
    const full = this.#waitingBytes > 0 && this.#waitingBytes + bytes > MAX_WAITING_BYTES
    if (this.#entries.has(digest) || this.#waiting.has(digest) || full) {
      return
    }
    this.#waiting.set(digest, { lastUsed: this.#options.now(), tenantId })
    this.#waitingBytes += bytes
    this.#writing = this.#writing
      .then(() => this.#write(digest, image, notes))
      // A full or failing disk costs the saving alone.
      .catch(() => undefined)
      .finally(() => {
        this.#waiting.delete(digest)
        this.#waitingBytes -= bytes
      })
  }

  async remove(digest: string): Promise<void> {
    if (this.#entries.delete(digest)) {
      this.#options.onEvict(digest)
      await rm(this.#path(digest), { force: true })
    }
  }

  get usedBytes(): number {
    return [...this.#entries.values()].reduce((sum, { bytes }) => sum + bytes, this.#reservedBytes)
  }

  evict(key: string): Promise<void> {
    return this.remove(key.slice(PREFIX.length))
  }

  evictables(): Evictable[] {
    const entries = [...this.#entries].map(([key, { bytes, lastUsed, tenantId }]) => ({
      key: `${PREFIX}${key}`,
      bytes,
      lastUsed,
      tenantId,
      held: this.#options.isPinned(key),
    }))
    const writing = { key: `${PREFIX}being written`, bytes: this.#reservedBytes, lastUsed: 0, tenantId: '', held: true }
    return this.#reservedBytes === 0 ? entries : [...entries, writing]
  }

  async settle(): Promise<void> {
    // What is written may add the time of its use behind it.
    for (let last: Promise<void> | undefined; last !== this.#writing; ) {
      last = this.#writing
      await last
    }
  }

  async #write(digest: string, image: PackedImage, notes: PackedFileNotes): Promise<void> {
    const parts = planPackedFile(image, notes)
    const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0)
    if (!this.#options.makeRoom(bytes, this.#waiting.get(digest)!.tenantId)) {
      return
    }
    this.#reservedBytes = bytes
    const path = `${this.#path(digest)}.new`
    try {
      await writePackedFile(path, parts)
      await rename(path, this.#path(digest))
      const entry = { bytes, dataBytes: image.data.byteLength, rank: notes.rank, notes }
      const used = this.#waiting.get(digest)!
      this.#entries.set(digest, { ...entry, ...used, touched: 0 })
      this.touch(digest, used.tenantId, used.lastUsed)
    } catch (error) {
      await rm(path, { force: true })
      throw error
    } finally {
      this.#reservedBytes = 0
    }
  }

  async #scan(name: string): Promise<void> {
    const path = join(this.#options.directory, 'packed', this.#options.key, name)
    try {
      const { rank, contentKeys, names, dataBytes } = await this.#options.readers.read(path)
      const { size, mtimeMs } = await stat(path)
      // A header that is whole says where the data ends, and only its last piece can be missing.
      if (/^[0-9a-f]{64}$/.test(name) && size > dataBytes) {
        const notes = { rank, contentKeys, names }
        const times = { lastUsed: mtimeMs, touched: mtimeMs }
        const entry = { bytes: size, dataBytes, rank, ...times, tenantId: '', notes }
        this.#entries.set(name, entry)
        return
      }
    } catch (error) {
      if (!(error instanceof DamagedContentError)) {
        throw error
      }
    }
    await rm(path, { recursive: true, force: true })
  }

  #path(digest: string): string {
    return join(this.#options.directory, 'packed', this.#options.key, digest)
  }
}
