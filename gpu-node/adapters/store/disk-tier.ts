/**
 * Adapter files on disk, within a budget of bytes: `content/<digest>/` holds an adapter's files and its manifest, `incoming/`
 * what is being fetched. A directory appears in `content/` whole, by a rename.
 */

import { createHash } from 'node:crypto'
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { CONFIG_FILE } from '../weight-file.ts'
import { chooseVictims, type Evictable } from './eviction.ts'

const MANIFEST_FILE = 'manifest.json'
/** How exact "last used" is after a restart. */
export const TOUCH_INTERVAL_MS = 60_000
/** Transfers that broke this long ago are not gone on with. */
const INCOMING_AGE_MS = 60 * 60_000

const manifestSchema = z.object({
  digest: z.string().regex(/^[0-9a-f]{64}$/),
  rank: z.number().int().positive(),
  files: z.record(z.string().regex(/^[\w.-]+$/), z.number().int().nonnegative()),
  contentKeys: z.array(z.string()),
  /** Exact refs, then refs without exact revision that last meant this content. */
  names: z.array(z.string()),
})
type Manifest = z.infer<typeof manifestSchema>

export interface DiskEntry {
  readonly directory: string
  readonly manifest: Manifest
  readonly bytes: number
  leases: number
  lastUsed: number
  tenantId: string
}

export interface Fetched {
  digest: string
  rank: number
  contentKey: string
  names: string[]
  files: string[]
  tenantId: string
}

/** Other files within the same budget. */
export interface PackedFiles {
  /** Those being written included. */
  usedBytes: number
  evictables(): Evictable[]
  /** By the evictable's key. */
  evict(key: string): Promise<void>
}

export interface DiskTierOptions {
  directory: string
  budgetBytes: number
  staleAfterMs: number
  now: () => number
  isPinned: (digest: string) => boolean
  onEvict: (digest: string) => void
}

export class DiskTier {
  readonly #options: DiskTierOptions
  readonly #entries = new Map<string, DiskEntry>()
  /** Fetches under way or broken off: directory → bytes they may fill. */
  readonly #incoming = new Map<string, { bytes: number; active: boolean; lastUsed: number }>()
  #adopting: Promise<void> = Promise.resolve()
  #writing: Promise<void> = Promise.resolve()
  readonly #touched = new Map<string, number>()
  /** Removals and manifest writes under way. */
  readonly #pending = new Set<Promise<unknown>>()
  #packed: PackedFiles | undefined

  private constructor(options: DiskTierOptions) {
    this.#options = options
  }

  /** Reads what is there and removes what is not whole; `makeRoom(0, …)` then applies a budget that has become smaller. */
  static async open(options: DiskTierOptions): Promise<DiskTier> {
    const tier = new DiskTier(options)
    await mkdir(join(options.directory, 'content'), { recursive: true, mode: 0o700 })
    await mkdir(join(options.directory, 'incoming'), { recursive: true, mode: 0o700 })
    await tier.#scanContent()
    await tier.#scanIncoming()
    return tier
  }

  get usedBytes(): number {
    const incoming = [...this.#incoming.values()].reduce((sum, { bytes }) => sum + bytes, this.#packed?.usedBytes ?? 0)
    return [...this.#entries.values()].reduce((sum, { bytes }) => sum + bytes, incoming)
  }

  attach(packed: PackedFiles): void {
    this.#packed = packed
  }

  get(digest: string): DiskEntry | undefined {
    return this.#entries.get(digest)
  }

  entries(): IterableIterator<[string, DiskEntry]> {
    return this.#entries.entries()
  }

  lease(digest: string, tenantId: string): { entry: DiskEntry; release: () => void } | undefined {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return undefined
    }
    entry.leases++
    this.touch(digest, tenantId)
    let held = true
    const release = () => {
      if (held) {
        held = false
        entry.leases--
      }
    }
    return { entry, release }
  }

  /** It was used, here or in a tier above. */
  touch(digest: string, tenantId: string): void {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return
    }
    const now = this.#options.now()
    entry.lastUsed = now
    entry.tenantId = tenantId
    if (now - (this.#touched.get(digest) ?? 0) >= TOUCH_INTERVAL_MS) {
      this.#touched.set(digest, now)
      this.#background(utimes(join(entry.directory, MANIFEST_FILE), now / 1000, now / 1000))
    }
  }

  /**
   * A directory of its own for this content, its bytes reserved; what an earlier fetch left there is kept. `undefined`: there
   * is no room. What had to leave for it is gone from the disk once `settle` has resolved.
   */
  beginFetch(contentKey: string, bytes: number, tenantId: string): string | undefined {
    const directory = join(this.#options.directory, 'incoming', createHash('sha256').update(contentKey).digest('hex'))
    const earlier = this.#incoming.get(directory)
    this.#incoming.delete(directory)
    if (!this.makeRoom(bytes, tenantId)) {
      if (earlier !== undefined) {
        // Its bytes are there still.
        this.#incoming.set(directory, earlier)
      }
      return undefined
    }
    this.#incoming.set(directory, { bytes, active: true, lastUsed: this.#options.now() })
    return directory
  }

  /** The transfer broke: what has arrived stays for a later fetch while there is room. */
  suspendFetch(directory: string): void {
    const incoming = this.#incoming.get(directory)
    if (incoming !== undefined) {
      incoming.active = false
    }
  }

  async dropFetch(directory: string): Promise<void> {
    this.#incoming.delete(directory)
    await rm(directory, { recursive: true, force: true })
  }

  /** Makes a whole fetch an entry. The same content may be there already; then only its names grow. */
  adopt(directory: string, found: Fetched): Promise<void> {
    // One after the other: two places may have the same content.
    this.#adopting = this.#adopting.then(
      () => this.#adopt(directory, found),
      () => this.#adopt(directory, found),
    )
    return this.#adopting
  }

  async #adopt(directory: string, found: Fetched): Promise<void> {
    const { digest, rank, contentKey, names, tenantId } = found
    if (this.#entries.has(digest)) {
      await this.dropFetch(directory)
      this.addNames(digest, [contentKey], names)
      return
    }
    const sizes = await Promise.all(found.files.map(async (file) => [file, (await stat(join(directory, file))).size]))
    const manifest: Manifest = { digest, rank, files: Object.fromEntries(sizes), contentKeys: [contentKey], names }
    // The journal of the transfer, and anything that the home did not list.
    for (const name of await readdir(directory)) {
      if (!found.files.includes(name)) {
        await rm(join(directory, name), { recursive: true, force: true })
      }
    }
    await writeFile(join(directory, MANIFEST_FILE), JSON.stringify(manifest), { mode: 0o600 })
    const target = join(this.#options.directory, 'content', digest)
    await rm(target, { recursive: true, force: true })
    await rename(directory, target)
    this.#incoming.delete(directory)
    this.#entries.set(digest, toEntry(target, manifest, this.#options.now(), tenantId))
  }

  addNames(digest: string, contentKeys: readonly string[], names: readonly string[]): void {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return
    }
    const { manifest } = entry
    const newKeys = contentKeys.filter((key) => !manifest.contentKeys.includes(key))
    const newNames = names.filter((name) => !manifest.names.includes(name))
    if (newKeys.length + newNames.length > 0) {
      manifest.contentKeys.push(...newKeys)
      manifest.names.push(...newNames)
      this.#write(entry)
    }
  }

  /** A name that is not exact now means other content. */
  dropName(digest: string, name: string): void {
    const entry = this.#entries.get(digest)
    const at = entry?.manifest.names.indexOf(name) ?? -1
    if (entry !== undefined && at >= 0) {
      entry.manifest.names.splice(at, 1)
      this.#write(entry)
    }
  }

  remove(digest: string): void {
    const entry = this.#entries.get(digest)
    if (entry === undefined) {
      return
    }
    this.#entries.delete(digest)
    this.#touched.delete(digest)
    // Out of `content/` first: a directory half removed must not look whole after a crash.
    const trash = join(this.#options.directory, 'incoming', `removed-${digest}-${this.#options.now()}`)
    this.#background(rename(entry.directory, trash).then(() => rm(trash, { recursive: true, force: true })))
    this.#options.onEvict(digest)
  }

  /** Broken fetches go first. `false`: what is in use leaves too little room; nothing was evicted then. */
  makeRoom(bytes: number, tenantId: string): boolean {
    const { budgetBytes, now, staleAfterMs } = this.#options
    const incoming = [...this.#incoming].map(([key, { bytes: size, active, lastUsed }]) => ({
      key,
      bytes: size,
      // Older than any entry: a broken fetch is worth less than whole content.
      lastUsed: active ? lastUsed : Number.NEGATIVE_INFINITY,
      tenantId,
      held: active,
    }))
    const entries = [...this.#entries].map(([key, entry]) => ({
      key,
      bytes: entry.bytes,
      lastUsed: entry.lastUsed,
      tenantId: entry.tenantId,
      held: entry.leases > 0 || this.#options.isPinned(key),
    }))
    const wanted = { budgetBytes, bytes, tenantId, now: now(), staleAfterMs }
    const packed = this.#packed?.evictables() ?? []
    const packedKeys = new Set(packed.map(({ key }) => key))
    const victims = chooseVictims([...incoming, ...entries, ...packed], wanted)
    for (const key of victims ?? []) {
      if (this.#incoming.delete(key)) {
        this.#background(rm(key, { recursive: true, force: true }))
      } else if (packedKeys.has(key)) {
        this.#background(this.#packed!.evict(key))
      } else {
        this.remove(key)
      }
    }
    return victims !== undefined
  }

  /** What must hold and does not; a budget that became smaller counts once `makeRoom(0, …)` has applied it. */
  violations(): string[] {
    const { budgetBytes } = this.#options
    const used = this.usedBytes
    const leases = [...this.#entries].filter(([, entry]) => entry.leases < 0)
    return [
      ...(used > budgetBytes ? [`${used} bytes on disk are beyond the budget of ${budgetBytes}`] : []),
      ...leases.map(([digest, entry]) => `the files of ${digest} have ${entry.leases} leases`),
    ]
  }

  /** Waits for writes and removals under way. */
  async settle(): Promise<void> {
    await Promise.allSettled([...this.#pending])
  }

  async #scanContent(): Promise<void> {
    const root = join(this.#options.directory, 'content')
    for (const name of await readdir(root)) {
      const directory = join(root, name)
      const entry = await readEntry(directory)
      if (entry === undefined || entry.manifest.digest !== name) {
        await rm(directory, { recursive: true, force: true })
      } else {
        this.#entries.set(name, entry)
      }
    }
  }

  async #scanIncoming(): Promise<void> {
    const root = join(this.#options.directory, 'incoming')
    for (const name of await readdir(root)) {
      const directory = join(root, name)
      const { mtimeMs } = await stat(directory)
      if (name.startsWith('removed-') || this.#options.now() - mtimeMs > INCOMING_AGE_MS) {
        await rm(directory, { recursive: true, force: true })
        continue
      }
      const sizes = await Promise.all(
        (await readdir(directory)).map(async (file) => (await stat(join(directory, file))).size),
      )
      const bytes = sizes.reduce((sum, size) => sum + size, 0)
      this.#incoming.set(directory, { bytes, active: false, lastUsed: mtimeMs })
    }
  }

  /** One after the other: each writes the whole manifest as it is then. */
  #write(entry: DiskEntry): void {
    this.#writing = this.#writing.catch(() => undefined).then(() => writeManifest(entry))
    this.#background(this.#writing)
  }

  #background(work: Promise<unknown>): void {
    // A failure here costs disk space or a stale "last used", which the next start puts right.
    const settled = work.catch(() => undefined).finally(() => this.#pending.delete(settled))
    this.#pending.add(settled)
  }
}

/** `undefined`: not whole. Content is proved by its digest when it is loaded; sizes are compared here. */
async function readEntry(directory: string): Promise<DiskEntry | undefined> {
  try {
    const path = join(directory, MANIFEST_FILE)
    const manifest = manifestSchema.parse(JSON.parse(await readFile(path, 'utf8')))
    for (const [file, size] of Object.entries(manifest.files)) {
      if ((await stat(join(directory, file))).size !== size) {
        return undefined
      }
    }
    return manifest.files[CONFIG_FILE] === undefined
      ? undefined
      : toEntry(directory, manifest, (await stat(path)).mtimeMs, '')
  } catch {
    // Unreadable in any way is not whole.
    return undefined
  }
}

function toEntry(directory: string, manifest: Manifest, lastUsed: number, tenantId: string): DiskEntry {
  const bytes = Object.values(manifest.files).reduce((sum, size) => sum + size, 0)
  return { directory, manifest, bytes, leases: 0, lastUsed, tenantId }
}

async function writeManifest(entry: DiskEntry): Promise<void> {
  const path = join(entry.directory, MANIFEST_FILE)
  await writeFile(`${path}.new`, JSON.stringify(entry.manifest), { mode: 0o600 })
  await rename(`${path}.new`, path)
}
