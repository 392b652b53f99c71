/**
 * Reads safetensors files from anyone: every number in the header is checked against the file's true size before it is used.
 * Layout: u64 LE header length · JSON header · data. The rules are those of the reference implementation (no overlap, no hole).
 */

import { readSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { FLOAT_BYTES, type FloatDtype, isFloatDtype, widenFloats } from './float16.ts'
import { type JsonOutline, outlineJson } from './json-outline.ts'

export const DTYPE_BYTES = {
  ...FLOAT_BYTES,
  F8_E8M0: 1,
  BOOL: 1,
  U8: 1,
  I8: 1,
  U16: 2,
  I16: 2,
  U32: 4,
  I32: 4,
  U64: 8,
  I64: 8,
  C64: 8,
} as const
export type SafetensorsDtype = keyof typeof DTYPE_BYTES

export interface SafetensorsEntry {
  name: string
  dtype: SafetensorsDtype
  shape: number[]
  /** Product of `shape`. */
  elements: number
  /** Bytes `[begin, end)` of the file. */
  begin: number
  end: number
}

export interface SafetensorsHeader {
  tensors: ReadonlyMap<string, SafetensorsEntry>
  metadata: ReadonlyMap<string, string>
  /** Where the data starts: 8 + the JSON's length. */
  dataStart: number
}

export interface SafetensorsLimits {
  maxHeaderBytes: number
  maxTensors: number
}

/** The header's limit is the reference implementation's. */
export const SAFETENSORS_LIMITS: SafetensorsLimits = { maxHeaderBytes: 100_000_000, maxTensors: 1_000_000 }

/** More dimensions than any weight has. */
const MAX_DIMENSIONS = 16
/** More of each than any header has for a tensor: three containers and three fields, and some metadata. */
const MAX_CONTAINERS_PER_TENSOR = 4
const MAX_FIELDS_PER_TENSOR = 16
/** One read; bounds the buffer that widening needs. */
const READ_BYTES = 16 * 1024 * 1024

/** A file that is no safetensors file, or a tensor that can't be read as asked; the message names the numbers in conflict. */
export class SafetensorsError extends Error {
  override readonly name = 'SafetensorsError'
}

/** Length of the JSON header, from the file's first 8 bytes. */
export function safetensorsHeaderLength(
  prefix: Uint8Array,
  fileSize: number,
  limits: SafetensorsLimits = SAFETENSORS_LIMITS,
): number {
  if (prefix.byteLength < 8 || fileSize < 8) {
    const size = Math.min(prefix.byteLength, fileSize)
    throw new SafetensorsError(`a safetensors file starts with 8 bytes of header length; this has ${size} bytes`)
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true)
  if (length > BigInt(limits.maxHeaderBytes)) {
    throw new SafetensorsError(`the header is said to have ${length} bytes; the limit is ${limits.maxHeaderBytes}`)
  }
  if (length > BigInt(fileSize - 8)) {
    throw new SafetensorsError(
      `the header is said to have ${length} bytes; the file has ${fileSize - 8} after its length`,
    )
  }
  return Number(length)
}

/** `bytes`: the file from its start, at least to the header's end. `fileSize`: the whole file's. */
export function parseSafetensorsHeader(
  bytes: Uint8Array,
  fileSize: number,
  limits: SafetensorsLimits = SAFETENSORS_LIMITS,
): SafetensorsHeader {
  const dataStart = 8 + safetensorsHeaderLength(bytes, fileSize, limits)
  if (bytes.byteLength < dataStart) {
    throw new SafetensorsError(`the header ends at byte ${dataStart}; only ${bytes.byteLength} bytes were given`)
  }
  const json = bytes.subarray(8, dataStart)
  const outline = outlineJson(json)
  checkOutline(outline, limits.maxTensors)
  const members = Object.entries(parseObject(json))
  checkUnique(members, outline)
  const tensors = new Map<string, SafetensorsEntry>()
  let metadata: ReadonlyMap<string, string> = new Map()
  for (const [name, value] of members) {
    if (name === '__metadata__') {
      metadata = parseMetadata(value)
    } else {
      tensors.set(name, parseEntry(name, value, dataStart, fileSize))
    }
  }
  checkLayout([...tensors.values()], dataStart, fileSize)
  return { tensors, metadata, dataStart }
}

/** One tensor of a file held in memory, widened to float32 into `out` (new, if absent). */
export function readSafetensorsTensor(
  file: Uint8Array,
  entry: SafetensorsEntry,
  out: Float32Array = new Float32Array(entry.elements),
): Float32Array {
  const dtype = floatDtype(entry)
  checkOut(entry, out)
  widenFloats(dtype, file.subarray(entry.begin, entry.end), out)
  return out
}

/** A file on disk: its header in memory, tensors read one by one. */
export interface SafetensorsFile {
  readonly path: string
  readonly size: number
  /** When it was last written, Unix ms. */
  readonly modifiedMs: number
  readonly header: SafetensorsHeader
  /** Of the open file. */
  readonly fd: number
  /** Widened to float32 into `out` (new, if absent; may lie in a SharedArrayBuffer). */
  read(name: string, out?: Float32Array): Promise<Float32Array>
  /** `out.length` elements of a tensor from `first` on, widened to float32. */
  readPart(name: string, first: number, out: Float32Array): Promise<Float32Array>
  /** Fills `out` with the file's bytes from `position` on; `out` may lie in a SharedArrayBuffer. */
  readBytes(position: number, out: Uint8Array): Promise<Uint8Array>
  /** The same for hundreds of small reads, each of which takes less time than a turn of the event loop. */
  readBytesNow(position: number, out: Uint8Array): Uint8Array
  close(): Promise<void>
}

export async function openSafetensors(
  path: string,
  limits: SafetensorsLimits = SAFETENSORS_LIMITS,
): Promise<SafetensorsFile> {
  const handle = await open(path, 'r')
  try {
    const { size, mtimeMs: modifiedMs } = await handle.stat()
    const prefix = new Uint8Array(8)
    await readFully(handle, prefix.subarray(0, Math.min(8, size)), 0)
    const length = safetensorsHeaderLength(prefix, size, limits)
    const head = new Uint8Array(8 + length)
    await readFully(handle, head, 0)
    const header = parseSafetensorsHeader(head, size, limits)
    return {
      path,
      size,
      modifiedMs,
      header,
      fd: handle.fd,
      read: async (name, out) => {
        const entry = entryOf(header, name)
        const target = out ?? new Float32Array(entry.elements)
        checkOut(entry, target)
        return readElements(handle, entry, 0, target)
      },
      readPart: async (name, first, out) => readElements(handle, entryOf(header, name), first, out),
      readBytes: async (position, out) => {
        await readFully(handle, out, position)
        return out
      },
      readBytesNow: (position, out) => {
        const bytesRead = readSync(handle.fd, out, 0, out.byteLength, position)
        if (bytesRead < out.byteLength) {
          throw cutShort(position + bytesRead, position + out.byteLength)
        }
        return out
      },
      close: () => handle.close(),
    }
  } catch (error) {
    await handle.close()
    throw error
  }
}

function entryOf(header: SafetensorsHeader, name: string): SafetensorsEntry {
  const entry = header.tensors.get(name)
  if (entry === undefined) {
    throw new SafetensorsError(`no tensor '${printable(name)}' in the file`)
  }
  return entry
}

/** Elements `[first, first + out.length)`. */
async function readElements(
  handle: FileHandle,
  entry: SafetensorsEntry,
  first: number,
  out: Float32Array,
): Promise<Float32Array> {
  if (first < 0 || first + out.length > entry.elements) {
    const range = `elements ${first} to ${first + out.length}`
    throw new SafetensorsError(`tensor '${printable(entry.name)}' has ${entry.elements} elements; asked: ${range}`)
  }
  const dtype = floatDtype(entry)
  const elementBytes = FLOAT_BYTES[dtype]
  const begin = entry.begin + first * elementBytes
  if (dtype === 'F32') {
    await readFully(handle, new Uint8Array(out.buffer, out.byteOffset, out.byteLength), begin)
    return out
  }
  const end = begin + out.length * elementBytes
  const chunk = new Uint8Array(Math.min(READ_BYTES, end - begin))
  for (let at = begin; at < end; at += READ_BYTES) {
    const part = chunk.subarray(0, Math.min(READ_BYTES, end - at))
    await readFully(handle, part, at)
    const done = (at - begin) / elementBytes
    widenFloats(dtype, part, out.subarray(done, done + part.byteLength / elementBytes))
  }
  return out
}

async function readFully(handle: FileHandle, target: Uint8Array, position: number): Promise<void> {
  let done = 0
  while (done < target.byteLength) {
    const length = Math.min(READ_BYTES, target.byteLength - done)
    const { bytesRead } = await handle.read(target, done, length, position + done)
    if (bytesRead === 0) {
      throw cutShort(position + done, position + target.byteLength)
    }
    done += bytesRead
  }
}

function cutShort(at: number, end: number): SafetensorsError {
  return new SafetensorsError(`the file ends at byte ${at}, before byte ${end}: it was cut while being read`)
}

/** Before anything is made of the text; metadata counts as a tensor. */
function checkOutline({ containers, members, fields }: JsonOutline, maxTensors: number): void {
  const most = maxTensors + 1
  if (members > most) {
    throw new SafetensorsError(`the header names ${members} tensors; the limit is ${maxTensors}`)
  }
  if (containers > MAX_CONTAINERS_PER_TENSOR * most || fields > MAX_FIELDS_PER_TENSOR * most) {
    const has = `${containers} objects and arrays and ${fields} fields`
    throw new SafetensorsError(`the header has ${has}; ${maxTensors} tensors, the limit, need less`)
  }
}

/** The format forbids a name twice: readers differ in which of them counts. */
function checkUnique(members: readonly [string, unknown][], { members: named, fields }: JsonOutline): void {
  if (members.length !== named) {
    throw new SafetensorsError(`the header has ${named} names, of which ${members.length} differ`)
  }
  const differing = members.reduce((sum, [, value]) => sum + (isObject(value) ? Object.keys(value).length : 0), 0)
  if (differing !== fields) {
    throw new SafetensorsError(`the header's tensors have ${fields} fields, of which ${differing} differ`)
  }
}

function parseObject(json: Uint8Array): object {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json))
  } catch (cause) {
    throw new SafetensorsError(`the header's ${json.byteLength} bytes are no JSON text in UTF-8`, { cause })
  }
  if (!isObject(value)) {
    throw new SafetensorsError('the header is no JSON object')
  }
  return value
}

function parseMetadata(value: unknown): ReadonlyMap<string, string> {
  const metadata = new Map<string, string>()
  if (!isObject(value)) {
    throw new SafetensorsError('__metadata__ is no object')
  }
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw new SafetensorsError(`__metadata__ '${printable(key)}' is no string`)
    }
    metadata.set(key, text)
  }
  return metadata
}

function parseEntry(name: string, value: unknown, dataStart: number, fileSize: number): SafetensorsEntry {
  const tensor = `tensor '${printable(name)}'`
  if (!isObject(value)) {
    throw new SafetensorsError(`${tensor} is described by no object`)
  }
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    const known = Object.keys(DTYPE_BYTES).join(', ')
    throw new SafetensorsError(`${tensor} has dtype ${printable(String(dtype))}; known: ${known}`)
  }
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isSize)) {
    throw new SafetensorsError(`${tensor} has no shape of at most ${MAX_DIMENSIONS} non-negative integers`)
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw new SafetensorsError(`${tensor} has no data_offsets of two non-negative integers`)
  }
  const [first, last] = offsets as [number, number]
  const dataBytes = fileSize - dataStart
  if (first > last || last > dataBytes) {
    throw new SafetensorsError(
      `${tensor} has data_offsets ${first} to ${last}; the file has ${dataBytes} bytes of data`,
    )
  }
  // A product beyond 2^53 is rounded, but then it is far above any file's size and fails all the same.
  const elements = shape.reduce((product: number, size: number) => product * size, 1)
  const bytes = elements * DTYPE_BYTES[dtype as SafetensorsDtype]
  if (bytes !== last - first) {
    const needs = `${dtype} [${shape.join(', ')}] needs ${bytes} bytes`
    throw new SafetensorsError(`${tensor} ${needs}, its data_offsets ${first} to ${last} hold ${last - first}`)
  }
  return {
    name,
    dtype: dtype as SafetensorsDtype,
    shape,
    elements,
    begin: dataStart + first,
    end: dataStart + last,
  }
}

/** Tensors tile the data: `[dataStart, a) [a, b) … [z, fileSize)`. */
function checkLayout(entries: SafetensorsEntry[], dataStart: number, fileSize: number): void {
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let end = dataStart
  for (const entry of entries) {
    if (entry.begin !== end) {
      const what =
        entry.begin < end ? 'overlaps the tensor before it, which ends' : 'leaves a hole after the tensor that ends'
      throw new SafetensorsError(
        `tensor '${printable(entry.name)}' starts at byte ${entry.begin}: it ${what} at ${end}`,
      )
    }
    end = entry.end
  }
  if (end !== fileSize) {
    throw new SafetensorsError(`the tensors end at byte ${end}; the file has ${fileSize} bytes`)
  }
}

function floatDtype(entry: SafetensorsEntry): FloatDtype {
  if (!isFloatDtype(entry.dtype)) {
    throw new SafetensorsError(`tensor '${printable(entry.name)}' is ${entry.dtype}, not a float format`)
  }
  return entry.dtype
}

function checkOut(entry: SafetensorsEntry, out: Float32Array): void {
  if (out.length !== entry.elements) {
    const has = `has ${entry.elements} elements`
    throw new SafetensorsError(`tensor '${printable(entry.name)}' ${has}; the place for it has ${out.length}`)
  }
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

function printable(text: string): string {
  return text.slice(0, 200).replace(/[^\x20-\x7e]/g, '?')
}
