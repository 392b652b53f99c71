/**
 * Memory straight from Linux, for weights: a file mapped, and private memory in huge pages, which a processor reads faster. There is
 * none elsewhere (`undefined`), and callers use arrays of their own. Views are valid until `dispose`; who holds one must know.
 */

import { readFileSync } from 'node:fs'
import koffi from 'koffi'

export const HUGE_PAGE_BYTES = 2 * 1024 * 1024

/** Linux's values, the same on every processor that Node.js runs on. */
const PROTECTION = { none: 0, read: 1, write: 2 } as const
const MAP = { shared: 0x01, private: 0x02, fixed: 0x10, anonymous: 0x20 } as const
const ADVICE = { willNeed: 3, dontNeed: 4, hugePage: 14, populateRead: 22 } as const
const MREMAP_MOVE_TO = 1 | 2

interface SystemCalls {
  mmap(address: bigint, bytes: number, protection: number, flags: number, fd: number, offset: number): bigint | number
  munmap(address: bigint, bytes: number): number
  madvise(address: bigint, bytes: number, advice: number): number
  mremap(address: bigint, bytes: number, newBytes: number, flags: number, to: bigint): bigint | number
  memcpy(to: bigint, from: bigint, bytes: number): unknown
}

let known: { calls: SystemCalls | undefined } | undefined

function systemCalls(): SystemCalls | undefined {
  known ??= { calls: process.platform === 'linux' ? bindSystemCalls() : undefined }
  return known.calls
}

function bindSystemCalls(): SystemCalls | undefined {
  try {
    // Of whatever C library the process runs on; `size_t` addresses come back as numbers where they are exact.
    const library = koffi.load(null)
    return {
      mmap: library.func('size_t mmap(size_t address, size_t n, int protection, int flags, int fd, int64_t offset)'),
      munmap: library.func('int munmap(size_t address, size_t n)'),
      madvise: library.func('int madvise(size_t address, size_t n, int advice)'),
      mremap: library.func('size_t mremap(size_t address, size_t n, size_t to_n, int flags, size_t to)'),
      memcpy: library.func('void *memcpy(size_t to, size_t from, size_t n)'),
    }
  } catch {
    return undefined
  }
}

/** MAP_FAILED. */
const FAILED = 2n ** 64n - 1n

function toAddress(result: bigint | number): bigint | undefined {
  const address = BigInt(result)
  return address === FAILED ? undefined : address
}

/** Address space with nothing behind it yet. */
interface Reserved {
  start: bigint
  bytes: number
  /** In it: the place whose byte `boundary` lies on a huge page's border. */
  address: bigint
}

function reserve(calls: SystemCalls, wanted: number, boundary: number): Reserved | undefined {
  const bytes = wanted + HUGE_PAGE_BYTES
  const start = toAddress(calls.mmap(0n, bytes, PROTECTION.none, MAP.private | MAP.anonymous, -1, 0))
  if (start === undefined) {
    return undefined
  }
  const huge = BigInt(HUGE_PAGE_BYTES)
  return { start, bytes, address: start + ((huge - ((start + BigInt(boundary)) % huge)) % huge) }
}

/** A huge page for private memory is to be had; `always` and `madvise` both give one that is asked for. */
function givesHugePages(): boolean {
  try {
    return !readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8').includes('[never]')
  } catch {
    return false
  }
}

/** glibc's; other C libraries have no such function, or settings of their own. */
const MALLOPT = { trimThreshold: -1, mmapThreshold: -3, arenaMax: -8 } as const
/** From this size on memory goes back as soon as it is freed. Left to itself glibc raises the border up to 32 MiB. */
const GIVEN_BACK_BYTES = 256 * 1024

/**
 * Keeps the C library from holding what was freed: an arena a thread, each with its own leftovers, takes tens of megabytes.
 * For the start of a process, before its threads.
 */
export function keepAllocatorSmall(): void {
  try {
    const mallopt = koffi.load(null).func('int mallopt(int parameter, int value)')
    mallopt(MALLOPT.arenaMax, 2)
    mallopt(MALLOPT.mmapThreshold, GIVEN_BACK_BYTES)
    mallopt(MALLOPT.trimThreshold, GIVEN_BACK_BYTES)
  } catch {
    // Nothing to set.
  }
}

export interface MappedFile {
  readonly hasHugePages: boolean
  view(offset: number, length: number): Uint8Array<ArrayBuffer>
  /** Brings a range into memory at once instead of page by page. */
  populate(offset: number, length: number): void
  /** Begins to read a range from the disk. */
  expect(offset: number, length: number): void
  /** Gives a range's memory back; it is read again when needed. */
  forget(offset: number, length: number): void
  /** Replaces a huge page of the file, from `offset` on, by a private copy, at the same place; no other thread may read it. */
  makePrivate(offset: number): void
  dispose(): void
}

/**
 * `boundary`: an offset, of a multiple of 4 KiB, from which on huge pages are counted. The file may be removed, or replaced by
 * renaming; whoever shortens it ends the process.
 */
export function mapFile(fd: number, bytes: number, boundary: number): MappedFile | undefined {
  const calls = systemCalls()
  const reserved = calls && reserve(calls, bytes, boundary)
  if (calls === undefined || reserved === undefined) {
    return undefined
  }
  const { start, address } = reserved
  const dispose = (): void => {
    calls.munmap(start, reserved.bytes)
  }
  if (toAddress(calls.mmap(address, bytes, PROTECTION.read, MAP.shared | MAP.fixed, fd, 0)) === undefined) {
    dispose()
    return undefined
  }
  // Only hints: where the kernel does not know one, pages come when they are touched.
  const advise = (offset: number, length: number, advice: number): void => {
    calls.madvise(address + BigInt(offset), length, advice)
  }
  return {
    hasHugePages: givesHugePages(),
    view: (offset, length) => new Uint8Array(viewAt(address + BigInt(offset), length)),
    populate: (offset, length) => advise(offset, length, ADVICE.populateRead),
    expect: (offset, length) => advise(offset, length, ADVICE.willNeed),
    forget: (offset, length) => advise(offset, length, ADVICE.dontNeed),
    makePrivate: (offset) => moveIntoHugePage(calls, address + BigInt(offset)),
    dispose,
  }
}

function moveIntoHugePage(calls: SystemCalls, place: bigint): void {
  const reserved = reserve(calls, HUGE_PAGE_BYTES, 0)
  if (reserved === undefined) {
    return
  }
  const { start, bytes, address } = reserved
  const page = makeHuge(calls, address, HUGE_PAGE_BYTES)
  if (page !== undefined) {
    calls.memcpy(page, place, HUGE_PAGE_BYTES)
    if (toAddress(calls.mremap(page, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES, MREMAP_MOVE_TO, place)) !== undefined) {
      // The page's own place is free now, and may be another thread's already.
      const before = Number(page - start)
      calls.munmap(page + BigInt(HUGE_PAGE_BYTES), bytes - before - HUGE_PAGE_BYTES)
      if (before > 0) {
        calls.munmap(start, before)
      }
      return
    }
  }
  // The file's page stays where it is.
  calls.munmap(start, bytes)
}

function makeHuge(calls: SystemCalls, address: bigint, bytes: number): bigint | undefined {
  const flags = MAP.private | MAP.anonymous | MAP.fixed
  const made = toAddress(calls.mmap(address, bytes, PROTECTION.read | PROTECTION.write, flags, -1, 0))
  if (made !== undefined) {
    calls.madvise(made, bytes, ADVICE.hugePage)
  }
  return made
}

/** What fits in is taken from one piece; only touched pages take memory. */
const SLAB_BYTES = 64 * 1024 * 1024
const ALIGNMENT = 64

/** Arrays that threads share, in huge pages where there are any; a piece is freed with the last of its arrays. */
export class HugeArena {
  #slab = new SharedArrayBuffer(0)
  #next = 0

  take(bytes: number): Uint8Array<SharedArrayBuffer> {
    const size = Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
    if (this.#next + size > this.#slab.byteLength) {
      this.#addSlab(Math.max(size, SLAB_BYTES))
    }
    const taken = new Uint8Array(this.#slab, this.#next, bytes)
    this.#next += size
    return taken
  }

  /** Starts on a huge page's border and fills whole ones, whatever else the allocator puts beside it. */
  #addSlab(wanted: number): void {
    const bytes = Math.ceil(wanted / HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    this.#slab = new SharedArrayBuffer(bytes + HUGE_PAGE_BYTES)
    this.#next = 0
    const calls = systemCalls()
    if (calls !== undefined) {
      const address = koffi.address(new Uint8Array(this.#slab))
      const huge = BigInt(HUGE_PAGE_BYTES)
      const before = (huge - (address % huge)) % huge
      calls.madvise(address + before, bytes, ADVICE.hugePage)
      this.#next = Number(before)
    }
  }
}

function viewAt(address: bigint, bytes: number): ArrayBuffer {
  return koffi.view(address, bytes)
}
