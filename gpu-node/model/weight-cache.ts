/**
 * The base's weights as the graph wants them, kept on disk so that the next start only maps a file: one safetensors file for each
 * model and format, its tensors at multiples of 64 bytes. A file that does not fit, whatever the reason, is no error: the weights
 * are made anew and it is replaced.
 */

import { rmSync } from 'node:fs'
import { join } from 'node:path'
import {
  openSafetensors,
  type SafetensorsEntry,
  SafetensorsError,
  type SafetensorsFile,
} from '../formats/safetensors.ts'
import { openSafetensorsWriter, type SafetensorsWriter } from '../formats/safetensors-writer.ts'
import { type MappedFile, mapFile } from '../ort/system-memory.ts'
import { checkPieces, keepMapped, PieceChecksums, type PieceLayout, readIntoArrays } from './kept-pieces.ts'
import { lockFile } from './lock-file.ts'

/** Raised whenever quantisation or this file's form change. */
const VERSION = '3'

/** An initializer of the graph. */
export interface GraphWeight {
  name: string
  type: 'float32' | 'uint8'
  shape: readonly number[]
  data: Float32Array | Uint8Array
}

export type CachedWeight = GraphWeight | (Omit<GraphWeight, 'type' | 'data'> & { type: 'bfloat16'; data: Uint16Array })

export interface WeightCacheKey {
  baseDigest: string
  /** `Checkpoint.stamp`: a weight file that was changed in place changes it. */
  stamp: string
  /** Format of the weights, e.g. `int8`. */
  format: string
  /** Says which matrices there are and what was folded into them; a change of the plan changes it. */
  layout: string
}

export interface KeptWeights {
  weights: readonly CachedWeight[]
  /**
   * Compares one more piece with its checksum, and brings it into memory that is faster to read; `false`: that was the last. Nothing
   * may read the weights meanwhile. Throws where the file is damaged; it is removed then.
   */
  settle(): boolean
  /**
   * Of weights whose file is still being written: ends when it is there. Of it comes the weight that is seldom read, to be read
   * from there on, so that it need not stay in memory; `undefined` where it could not be written or mapped.
   */
  filed?: Promise<CachedWeight | undefined>
  /** No array of `weights` may be touched after it, nor that of `filed`. A file that is not yet whole is given up. */
  dispose(): void
}

/** Takes weights one by one. */
export type KeepWeight = (weight: CachedWeight) => Promise<void>

/** What `write` is given. */
export interface WeightMaker {
  /** How many weights there are at most. */
  count: number
  /** Name of the last, if that is read so seldom that it stays on the disk until it is. */
  rare?: string
  make(keep: KeepWeight): Promise<void>
}

/** What `make` is given. */
export interface MemoryMaker {
  /** As `WeightMaker.rare`. */
  rare: string
  /** In memory that stays for as long as the arrays are held. */
  make(): Promise<readonly CachedWeight[]>
}

export interface WeightCache {
  /** `undefined` where there is nothing, or nothing that fits; `onMiss` hears why. */
  read(): Promise<KeptWeights | undefined>
  /**
   * The weights come back from the file. `undefined`: they could not be kept; a full or read-only disk costs the next start its
   * time, not this one its life. `onMiss` hears of it.
   */
  write(maker: WeightMaker): Promise<KeptWeights | undefined>
  /**
   * The weights serve from the memory they were made in, and the file is written behind them, a little at a time. `onMiss` hears
   * where it cannot be. Where another process is making them, its file is waited for.
   */
  make(maker: MemoryMaker): Promise<KeptWeights>
}

export function weightCache(
  folder: string,
  key: WeightCacheKey,
  onMiss: (why: string) => void = () => {},
  map: typeof mapFile = mapFile,
): WeightCache {
  const path = join(folder, `${key.baseDigest.slice(0, 32)}-${key.format}.safetensors`)
  const lockPath = `${path}.lock`
  const identity = JSON.stringify([VERSION, key.baseDigest, key.stamp, key.format, key.layout])
  const read = async (told: (why: string) => void) => {
    try {
      return await openKept(path, identity, map)
    } catch (error) {
      if (error instanceof SafetensorsError || isFileError(error)) {
        told((error as Error).message)
        return undefined
      }
      throw error
    }
  }
  const lock = () => lockFile(lockPath, { signal: new AbortController().signal })
  const write = async (maker: WeightMaker) => {
    const unlock = await lock()
    try {
      // Another process may have made them while this one waited.
      const made = await read(() => {})
      if (made !== undefined) {
        return made
      }
      await writeFile(await openWriter(path, maker.count), identity, maker)
      return await read(onMiss)
    } finally {
      await unlock()
    }
  }
  const tellUnkept = (error: unknown): undefined => {
    if (!isFileError(error)) {
      throw error
    }
    onMiss(`the weights could not be kept for the next start: ${error.message}`)
  }
  const make = async (maker: MemoryMaker): Promise<KeptWeights> => {
    const unlock = await lock().catch(tellUnkept)
    try {
      const made = unlock && (await read(() => {}))
      if (made !== undefined) {
        await unlock?.()
        return made
      }
      const weights = await maker.make()
      const inMemory = { weights, settle: () => false, dispose: () => {} }
      const writer = unlock && (await openWriter(path, weights.length).catch(tellUnkept))
      if (unlock === undefined || writer === undefined) {
        await unlock?.()
        return inMemory
      }
      const place = { path, identity, lockPath, unlock, tellUnkept, map }
      return { ...inMemory, ...fileBehind(place, writer, maker.rare, weights) }
    } catch (error) {
      await unlock?.()
      throw error
    }
  }
  return {
    read: () => read(onMiss),
    write: (maker) => write(maker).catch(tellUnkept),
    make,
  }
}

interface FilePlace {
  path: string
  identity: string
  lockPath: string
  unlock: () => Promise<void>
  tellUnkept: (error: unknown) => undefined
  map: typeof mapFile
}

/** Nothing of what it returns holds the weights in memory. */
function fileBehind(
  place: FilePlace,
  writer: SafetensorsWriter,
  rare: string,
  weights: readonly CachedWeight[],
): Pick<Required<KeptWeights>, 'filed' | 'dispose'> {
  const state: FileState = { kind: 'writing' }
  const filed = writeBehind(place, state, writer, rare, weights)
  // Whoever does not ask for it is not to hear of it either.
  filed.catch(() => {})
  return {
    filed,
    dispose: () => {
      if (state.kind === 'writing') {
        // This thread may end before any promise does.
        state.kind = 'stopped'
        writer.release()
        rmSync(place.lockPath, { force: true })
      }
      state.mapped?.dispose()
    },
  }
}

interface FileState {
  kind: 'writing' | 'written' | 'stopped'
  mapped?: MappedFile
}

async function writeBehind(
  { path, identity, unlock, tellUnkept, map }: FilePlace,
  state: FileState,
  writer: SafetensorsWriter,
  rare: string,
  weights: readonly CachedWeight[],
): Promise<CachedWeight | undefined> {
  const make = async (keep: KeepWeight): Promise<void> => {
    for (const weight of weights) {
      await keep(weight)
    }
  }
  try {
    await writeFile(writer, identity, { rare, make })
    return await mapRare(path, rare, map, state)
  } catch (error) {
    return state.kind === 'stopped' ? undefined : tellUnkept(error)
  } finally {
    if (state.kind === 'writing') {
      state.kind = 'written'
      await unlock()
    }
  }
}

async function mapRare(
  path: string,
  rare: string,
  map: typeof mapFile,
  state: FileState,
): Promise<CachedWeight | undefined> {
  const file = await openSafetensors(path)
  try {
    const entry = file.header.tensors.get(rare)
    const mapped = entry && map(file.fd, file.size, file.header.dataStart)
    if (entry === undefined || mapped === undefined) {
      return undefined
    }
    if (state.kind === 'stopped') {
      mapped.dispose()
      return undefined
    }
    state.mapped = mapped
    return toWeight(entry, mapped.view(entry.begin, entry.end - entry.begin))
  } finally {
    await file.close()
  }
}

/** Tensors of the file's own. */
const INTERNAL = '#'
const CHECKSUMS = `${INTERNAL}checksums`
const PAD = `${INTERNAL}pad`
const ALIGNMENT = 64
/** Header bytes of a tensor with the pad behind it. */
const ENTRY_BYTES = 512
const PAGE_BYTES = 4096

function openWriter(path: string, count: number): Promise<SafetensorsWriter> {
  const headerBytes = Math.ceil((PAGE_BYTES + ENTRY_BYTES * count) / PAGE_BYTES) * PAGE_BYTES
  return openSafetensorsWriter(path, headerBytes)
}

async function writeFile(
  writer: SafetensorsWriter,
  identity: string,
  { rare, make }: Omit<WeightMaker, 'count'>,
): Promise<void> {
  try {
    const tensors = new AlignedTensors(writer)
    await make((weight) => tensors.add(weight))
    await tensors.finish({ identity, ...(rare === undefined ? {} : { rare }) })
  } catch (error) {
    await writer.abandon()
    throw error
  }
}

/** Each tensor starts at a multiple of 64 bytes; the last one holds the checksums of what is before it. */
class AlignedTensors {
  readonly #writer: SafetensorsWriter
  readonly #checksums = new PieceChecksums()
  #pads = 0

  constructor(writer: SafetensorsWriter) {
    this.#writer = writer
  }

  async add({ name, type, shape, data }: CachedWeight): Promise<void> {
    const dtype = ({ float32: 'F32', bfloat16: 'BF16', uint8: 'U8' } as const)[type]
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    const checksum = (part: Uint8Array) => this.#checksums.add(part)
    await this.#writer.add({ name, dtype, shape, bytes }, checksum)
    const over = bytes.byteLength % ALIGNMENT
    if (over > 0) {
      const pad = new Uint8Array(ALIGNMENT - over)
      await this.#writer.add({ name: `${PAD}${this.#pads++}`, dtype: 'U8', shape: [pad.length], bytes: pad }, checksum)
    }
  }

  async finish(metadata: Readonly<Record<string, string>>): Promise<void> {
    const list = this.#checksums.finish()
    await this.#writer.add({
      name: CHECKSUMS,
      dtype: 'U32',
      shape: [list.length],
      bytes: new Uint8Array(list.buffer),
    })
    await this.#writer.finish(metadata)
  }
}

async function openKept(path: string, identity: string, map: typeof mapFile): Promise<KeptWeights> {
  const file = await openSafetensors(path)
  try {
    const { metadata, tensors } = file.header
    if (metadata.get('identity') !== identity) {
      throw new SafetensorsError('the cached weights were made from another checkpoint or by another version')
    }
    const layout = await readLayout(file)
    const mapped = map(file.fd, file.size, layout.dataStart)
    const kept = mapped === undefined ? await readIntoArrays(file, layout) : keepMapped(mapped, layout)
    const entries = [...tensors.values()].filter(({ name }) => !name.startsWith(INTERNAL))
    return {
      weights: entries.map((entry) => toWeight(entry, kept.bytesOf(entry))),
      settle: kept.settle,
      dispose: kept.dispose,
    }
  } finally {
    await file.close()
  }
}

async function readLayout(file: SafetensorsFile): Promise<PieceLayout> {
  const { metadata, tensors, dataStart } = file.header
  const last = tensors.get(CHECKSUMS)
  if (last === undefined || last.dtype !== 'U32') {
    throw new SafetensorsError('the cached weights have no checksums')
  }
  const checksums = new Uint32Array(last.elements)
  await file.readBytes(last.begin, new Uint8Array(checksums.buffer))
  const rare = tensors.get(metadata.get('rare') ?? '')
  const layout = { path: file.path, checksums, dataStart, dataEnd: last.begin, rareStart: rare?.begin ?? last.begin }
  checkPieces(layout)
  return layout
}

function toWeight({ name, dtype, shape }: SafetensorsEntry, bytes: Uint8Array): CachedWeight {
  const { buffer, byteOffset, byteLength } = bytes
  switch (dtype) {
    case 'F32':
      return { name, type: 'float32', shape, data: new Float32Array(buffer, byteOffset, byteLength / 4) }
    case 'BF16':
      return { name, type: 'bfloat16', shape, data: new Uint16Array(buffer, byteOffset, byteLength / 2) }
    default:
      return { name, type: 'uint8', shape, data: bytes }
  }
}

function isFileError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
}
