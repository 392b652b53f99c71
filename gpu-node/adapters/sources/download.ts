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

const progressSchema = z.object({ contentKey: z.string(), ranges: z.record(z.string(), z.array(z.number().int())) })

/** `directory` is this content's own place; what an earlier call left there is used. */
export async function downloadAdapter(
  adapter: ResolvedAdapter,
  directory: string,
  options: DownloadOptions,
): Promise<void> {
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
  for (const file of adapter.files) {
    await verify(adapter, file, join(directory, file.name), journal)
  }
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
  try {
    const ranges = Array.from({ length: Math.ceil(file.bytes / RANGE_BYTES) }, (_, index) => index)
    await allSettledOrThrow(
      ranges.map((index) =>
        transfer.limit(async () => {
          signal.throwIfAborted()
          const start = index * RANGE_BYTES
          const end = Math.min(start + RANGE_BYTES, file.bytes)
          if (transfer.journal.has(file.name, index)) {
            transfer.advance(end - start)
            return
          }
          await downloadRange(adapter, file, handle, { start, end }, { ...transfer, signal })
          await transfer.journal.add(file.name, index)
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

/** Goes on after the last byte received; gives up after `ATTEMPTS` without any. */
async function downloadRange(
  adapter: ResolvedAdapter,
  file: SourceFile,
  handle: FileHandle,
  range: { start: number; end: number },
  transfer: Transfer,
): Promise<void> {
  const sleep = transfer.sleep ?? defaultSleep
  let { start } = range
  let attempt = 1
  for (let all = 1; ; all++) {
    const before = start
    try {
      for await (const chunk of file.read(start, range.end, transfer.signal)) {
        await handle.write(chunk, 0, chunk.byteLength, start)
        start += chunk.byteLength
        transfer.advance(chunk.byteLength)
      }
      if (start !== range.end) {
        throw new HomeReplyError(200, `the range ended at byte ${start} of ${range.end}`)
      }
      return
    } catch (error) {
      transfer.signal.throwIfAborted()
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

async function verify(adapter: ResolvedAdapter, file: SourceFile, path: string, journal: Journal): Promise<void> {
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
      await journal.forget(file.name)
      const name = formatAdapterRef(adapter.ref)
      throw new RingletError(
        'adapter_home_unreachable',
        `${file.name} of ${name} arrived damaged: ${kind} ${actual} of ${size} bytes, its home says ${expected} of ${file.bytes}`,
        { retryAfterSeconds: 5 },
      )
    }
  }
}

interface Journal {
  has(file: string, range: number): boolean
  add(file: string, range: number): Promise<void>
  forget(file: string): Promise<void>
}

/** Which ranges are on disk, written after each; a crash loses at most the ranges under way. */
async function openJournal(directory: string, contentKey: string): Promise<Journal> {
  const path = join(directory, PROGRESS_FILE)
  const known = progressSchema.safeParse(await readJson(path)).data
  const done = new Map<string, Set<number>>()
  if (known?.contentKey === contentKey) {
    for (const [file, ranges] of Object.entries(known.ranges)) {
      done.set(file, new Set(ranges))
    }
  }
  let writing = Promise.resolve()
  const save = () => {
    const ranges = Object.fromEntries([...done].map(([file, indexes]) => [file, [...indexes]]))
    const text = JSON.stringify({ contentKey, ranges })
    writing = writing.then(async () => {
      await writeFile(`${path}.new`, text, { mode: 0o600 })
      await rename(`${path}.new`, path)
    })
    return writing
  }
  return {
    has: (file, range) => done.get(file)?.has(range) ?? false,
    add: (file, range) => {
      done.set(file, (done.get(file) ?? new Set()).add(range))
      return save()
    },
    forget: (file) => {
      done.delete(file)
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
