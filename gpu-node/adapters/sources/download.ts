/**
 * A resolved adapter's files → a directory. Ranges in parallel; a broken transfer goes on where it stopped, also in a later
 * call; lengths and the home's checksums are compared before the files count as whole.
 */

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, open, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import pLimit from 'p-limit'
import { z } from 'zod'
import { formatAdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import { notFound, type ResolvedAdapter, type SourceFile, unreachable } from './adapter-source.ts'
import { HomeReplyError, isTransient } from './http-home.ts'

/** Ranges at once for one adapter, and the size of each: large enough that a round trip is small beside it. */
const PARALLEL_RANGES = 4
const RANGE_BYTES = 8 * 1024 * 1024
/** Attempts of one range: without a byte of progress between them, and in all. */
const ATTEMPTS = 4
const ATTEMPTS_IN_ALL = 50
const PROGRESS_FILE = 'download.json'

export interface DownloadOptions {
  signal: AbortSignal
  onProgress?: (receivedBytes: number, totalBytes: number) => void
  /** Waits between attempts; tests pass one that does not. */
  sleep?: (ms: number, signal: AbortSignal) => Promise<void>
}

const count = z.number().int().nonnegative()
/** Of each file, by range: how many of its bytes, from its start on, are on disk. */
const progressSchema = z.object({
  contentKey: z.string(),
  received: z.record(z.string(), z.record(z.string().regex(/^\d+$/), count)),
})

/** `directory` is this content's own place; what an earlier call left there is used. */
export async function downloadAdapter(
  adapter: ResolvedAdapter,
  directory: string,
  options: DownloadOptions,
): Promise<void> {
  try {
    await download(adapter, directory, options)
  } catch (error) {
    throw isDiskFailure(error) ? diskFailed(error) : error
  }
}

/** What the home or the network does has become a RingletError by then; an error with a system call is the disk's. */
export function isDiskFailure(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error
}

/** Full, read-only or broken: another node may do better. */
export function diskFailed(cause: NodeJS.ErrnoException): RingletError {
  const why = `this node’s disk for adapters failed (${cause.code})`
  return new RingletError('adapter_capacity', why, { retryAfterSeconds: 5, cause })
}

async function download(adapter: ResolvedAdapter, directory: string, options: DownloadOptions): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const journal = await openJournal(directory, adapter.contentKey)
  const total = adapter.files.reduce((sum, file) => sum + file.bytes, 0)
  let received = 0
  const advance = (bytes: number) => {
    received += bytes
    options.onProgress?.(received, total)
  }
  const limit = pLimit(PARALLEL_RANGES)
  const failed = new AbortController()
  const signal = AbortSignal.any([options.signal, failed.signal])
  await allSettledOrThrow(
    adapter.files.map((file) =>
      downloadFile(adapter, file, { directory, journal, limit, advance, ...options, signal }),
    ),
    failed,
  )
  await verifyAll(adapter, directory, journal)
}

interface Transfer extends DownloadOptions {
  directory: string
  journal: Journal
  limit: ReturnType<typeof pLimit>
  advance: (bytes: number) => void
}

async function downloadFile(adapter: ResolvedAdapter, file: SourceFile, transfer: Transfer): Promise<void> {
  const handle = await openForWriting(join(transfer.directory, file.name))
  const failed = new AbortController()
  const signal = AbortSignal.any([transfer.signal, failed.signal])
  // A journal without its file says nothing.
  const { size: onDisk } = await handle.stat()
  try {
    const ranges = Array.from({ length: Math.ceil(file.bytes / RANGE_BYTES) }, (_, index) => index)
    await allSettledOrThrow(
      ranges.map((index) =>
        transfer.limit(async () => {
          signal.throwIfAborted()
          const start = index * RANGE_BYTES
          const end = Math.min(start + RANGE_BYTES, file.bytes)
          const known = Math.max(0, Math.min(transfer.journal.received(file.name, index), end - start, onDisk - start))
          transfer.advance(known)
          if (known < end - start) {
            const received = (bytes: number) => transfer.journal.note(file.name, index, known + bytes)
            const rest = { start: start + known, end, received }
            await downloadRange(adapter, file, handle, rest, { ...transfer, signal })
          }
        }),
      ),
      failed,
    )
    await handle.truncate(file.bytes)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

interface Range {
  start: number
  end: number
  /** Called once with what has arrived and is on disk, whole or not. */
  received: (bytes: number) => Promise<void>
}

async function downloadRange(
  adapter: ResolvedAdapter,
  file: SourceFile,
  handle: FileHandle,
  range: Range,
  transfer: Transfer,
): Promise<void> {
  let bytes = 0
  try {
    await receiveRange(adapter, file, range, transfer, async (chunk) => {
      await write(handle, chunk, range.start + bytes)
      bytes += chunk.byteLength
    })
  } finally {
    if (bytes > 0) {
      // What the journal names must outlive a machine that stops: not every home says what the bytes should be.
      await handle.datasync()
      await range.received(bytes)
    }
  }
}

/** Throws a RingletError, so that a disk's failure is not taken for the home's. */
async function write(handle: FileHandle, chunk: Uint8Array, position: number): Promise<void> {
  try {
    for (let done = 0; done < chunk.byteLength; ) {
      done += (await handle.write(chunk, done, chunk.byteLength - done, position + done)).bytesWritten
    }
  } catch (error) {
    throw isDiskFailure(error) ? diskFailed(error) : error
  }
}

/** Goes on after the last byte received; gives up after `ATTEMPTS` without any. */
async function receiveRange(
  adapter: ResolvedAdapter,
  file: SourceFile,
  range: Range,
  transfer: Transfer,
  take: (chunk: Uint8Array) => Promise<void>,
): Promise<void> {
  const sleep = transfer.sleep ?? defaultSleep
  let { start } = range
  let attempt = 1
  for (let all = 1; ; all++) {
    const before = start
    try {
      for await (const chunk of file.read(start, range.end, transfer.signal)) {
        // Beyond the range lies another one's place in the file.
        if (start + chunk.byteLength > range.end) {
          throw new HomeReplyError(200, `the home sent more than bytes ${start} to ${range.end}`)
        }
        await take(chunk)
        start += chunk.byteLength
        transfer.advance(chunk.byteLength)
      }
      if (start !== range.end) {
        throw new HomeReplyError(200, `the range ended at byte ${start} of ${range.end}`)
      }
      return
    } catch (error) {
      transfer.signal.throwIfAborted()
      if (error instanceof RingletError) {
        throw error
      }
      // The right to read was taken back, or the file is gone.
      if (error instanceof HomeReplyError && error.status >= 400 && !isTransient(error.status)) {
        throw notFound(adapter.ref, error)
      }
      attempt = start > before ? 1 : attempt + 1
      if (attempt > ATTEMPTS || all >= ATTEMPTS_IN_ALL) {
        throw unreachable(adapter.ref, `the transfer of ${file.name} broke at byte ${start} of ${file.bytes}`, error)
      }
      await sleep(100 * 2 ** attempt, transfer.signal)
    }
  }
}

/** Every damaged file is forgotten, so that the next call fetches all of them and no other; the first is what is thrown. */
async function verifyAll(adapter: ResolvedAdapter, directory: string, journal: Journal): Promise<void> {
  let first: RingletError | undefined
  for (const file of adapter.files) {
    const damage = await findDamage(file, join(directory, file.name))
    if (damage !== undefined) {
      await journal.forget(file.name)
      const text = `${file.name} of ${formatAdapterRef(adapter.ref)} arrived damaged: ${damage}`
      first ??= new RingletError('adapter_home_unreachable', text, { retryAfterSeconds: 5 })
    }
  }
  if (first !== undefined) {
    throw first
  }
}

/** `undefined`: the file is what its home says. */
async function findDamage(file: SourceFile, path: string): Promise<string | undefined> {
  const { size } = await stat(path)
  const hashes = {
    sha256: createHash('sha256'),
    md5: createHash('md5'),
    // Git names a blob by the SHA-1 over its kind, its size and its bytes.
    gitBlobSha1: createHash('sha1').update(`blob ${size}\0`),
  }
  const wanted = Object.entries(file.checks) as [keyof typeof hashes, string][]
  if (wanted.length > 0) {
    for await (const chunk of createReadStream(path, { highWaterMark: 256 * 1024 })) {
      for (const [kind] of wanted) {
        hashes[kind].update(chunk as Buffer)
      }
    }
  }
  for (const [kind, expected] of wanted) {
    const actual = hashes[kind].digest('hex')
    if (size !== file.bytes || actual !== expected) {
      return `${kind} ${actual} of ${size} bytes, its home says ${expected} of ${file.bytes}`
    }
  }
  return undefined
}

interface Journal {
  /** Bytes of a range that are on disk. */
  received(file: string, range: number): number
  note(file: string, range: number, bytes: number): Promise<void>
  forget(file: string): Promise<void>
}

/** What is on disk, written when a range ends or breaks; a crash loses at most the ranges under way. */
async function openJournal(directory: string, contentKey: string): Promise<Journal> {
  const path = join(directory, PROGRESS_FILE)
  const known = progressSchema.safeParse(await readJson(path)).data
  const files = new Map<string, Map<string, number>>()
  if (known?.contentKey === contentKey) {
    for (const [file, ranges] of Object.entries(known.received)) {
      files.set(file, new Map(Object.entries(ranges)))
    }
  }
  let writing = Promise.resolve()
  const save = () => {
    const received = Object.fromEntries([...files].map(([file, ranges]) => [file, Object.fromEntries(ranges)]))
    const text = JSON.stringify({ contentKey, received })
    writing = writing.then(async () => {
      await writeFile(`${path}.new`, text, { mode: 0o600 })
      await rename(`${path}.new`, path)
    })
    return writing
  }
  return {
    received: (file, range) => files.get(file)?.get(String(range)) ?? 0,
    note: (file, range, bytes) => {
      files.set(file, (files.get(file) ?? new Map()).set(String(range), bytes))
      return save()
    },
    forget: (file) => {
      files.delete(file)
      return save()
    },
  }
}

async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8'))
  } catch {
    // Absent or half written: nothing is known to be there, so all of it is fetched.
    return undefined
  }
}

/** Keeps what is there. */
async function openForWriting(path: string): Promise<FileHandle> {
  await writeFile(path, '', { flag: 'a', mode: 0o600 })
  return open(path, 'r+')
}

/** Waits for all, so that nothing writes after the files are closed; the first failure stops the others. */
async function allSettledOrThrow(promises: Promise<void>[], failed: AbortController): Promise<void> {
  let first: { error: unknown } | undefined
  await Promise.all(
    promises.map((promise) =>
      promise.catch((error: unknown) => {
        first ??= { error }
        failed.abort(error)
      }),
    ),
  )
  if (first !== undefined) {
    throw first.error
  }
}

async function defaultSleep(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(done, ms)
    function done() {
      signal.removeEventListener('abort', aborted)
      resolve()
    }
    function aborted() {
      clearTimeout(timer)
      reject(signal.reason as Error)
    }
    signal.addEventListener('abort', aborted, { once: true })
  })
}
