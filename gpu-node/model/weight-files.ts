/** The safetensors files of a checkpoint, one or sharded by an index: where each tensor lies, and reading it. */

import type { Hash } from 'node:crypto'
import { access, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { FLOAT_BYTES, type FloatDtype, isFloatDtype } from '../formats/float16.ts'
import { openSafetensors, type SafetensorsEntry, type SafetensorsFile } from '../formats/safetensors.ts'
import { ModelError } from './model-error.ts'
import { product, tensorCandidates } from './tensor-candidates.ts'

/** Where a tensor's numbers lie in a file that this process has open: any of its threads may read them. */
export interface StoredNumbers {
  fd: number
  /** Of the first. */
  position: number
  dtype: FloatDtype
}

export interface WeightFiles {
  has(name: string): boolean
  /** Until `close`. */
  stored(name: string): StoredNumbers
  /** Do two tensors of one size hold the same numbers? */
  equal(name: string, other: string): Promise<boolean>
  /** `out.length` numbers from element `first` on, widened to float32. */
  readPart(name: string, first: number, out: Float32Array): Promise<Float32Array>
  /** The tensor as stored, if that is bfloat16. */
  readBfloat16(name: string): Promise<Uint16Array | undefined>
  /** Sizes and times of all files. */
  stamp: string
  /** The files' names, sizes, headers, and samples of every tensor. */
  addTo(hash: Hash): void
  /** Tensors that nothing wanted. */
  unused(): string[]
  close(): Promise<void>
}

interface StoredTensor {
  file: SafetensorsFile
  entry: SafetensorsEntry
}

/** The tensor itself, or a part of one that holds several. */
interface Place extends StoredTensor {
  first: number
  elements: number
}

const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'
/** What some checkpoints keep beside the weights: masks and frequencies that the code makes itself. */
const COMPUTED = /(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|position_ids)$/
/** `wanted`: every tensor that must be there, with its shape; `experts`: how many a layer has, if any. */
export async function openWeightFiles(
  directory: string,
  wanted: ReadonlyMap<string, readonly number[]>,
  experts?: number,
): Promise<WeightFiles> {
  const files: SafetensorsFile[] = []
  try {
    for (const name of await weightFileNames(directory)) {
      files.push(await openWeightFile(join(directory, name)))
    }
    const stored = new Map<string, StoredTensor>()
    for (const file of files) {
      for (const entry of file.header.tensors.values()) {
        stored.set(entry.name, { file, entry })
      }
    }
    const places = new Map([...wanted].map(([name, shape]) => [name, find(stored, name, shape, experts)]))
    const place = (name: string) => places.get(name) ?? find(stored, name)
    return {
      has: (name) => stored.has(name),
      equal: (name, other) => equalTensors(place(name), place(other)),
      readPart: (name, first, out) => {
        const { file, entry, first: begin } = place(name)
        return file.readPart(entry.name, begin + first, out)
      },
      stored: (name) => storedNumbers(place(name)),
      readBfloat16: (name) => readBfloat16(place(name)),
      stamp: files.map(({ size, modifiedMs }) => `${size}@${modifiedMs}`).join(' '),
      addTo: (hash) => addFiles(hash, files),
      unused: () => unusedTensors(stored, places),
      close: async () => {
        await Promise.all(files.map((file) => file.close()))
      },
    }
  } catch (error) {
    await Promise.all(files.map((file) => file.close()))
    throw error
  }
}

async function weightFileNames(directory: string): Promise<string[]> {
  if (await exists(join(directory, SINGLE))) {
    return [SINGLE]
  }
  if (!(await exists(join(directory, INDEX)))) {
    throw new ModelError(`${directory} has neither ${SINGLE} nor ${INDEX}`)
  }
  return shardNames(await readFile(join(directory, INDEX), 'utf8'))
}

function shardNames(index: string): string[] {
  let map: unknown
  try {
    map = (JSON.parse(index) as { weight_map?: unknown } | null)?.weight_map
  } catch (cause) {
    throw new ModelError(`${INDEX} is no JSON text`, { cause })
  }
  if (typeof map !== 'object' || map === null) {
    throw new ModelError(`${INDEX} has no weight_map`)
  }
  const names = [...new Set(Object.values(map) as unknown[])].sort()
  for (const name of names) {
    // A shard lies beside its index; anything else would reach out of the checkpoint.
    if (typeof name !== 'string' || name !== basename(name) || !name.endsWith('.safetensors')) {
      throw new ModelError(`${INDEX} names the file ${JSON.stringify(name)}; shards are *.safetensors beside it`)
    }
  }
  return names as string[]
}

async function openWeightFile(path: string): Promise<SafetensorsFile> {
  try {
    return await openSafetensors(path)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new ModelError(`cannot read ${path}: ${code ?? message}`, { cause: error })
  }
}

function find(
  stored: ReadonlyMap<string, StoredTensor>,
  name: string,
  shape?: readonly number[],
  experts?: number,
): Place {
  for (const candidate of tensorCandidates(name, shape, experts)) {
    const tensor = stored.get(candidate.name)
    if (tensor !== undefined) {
      checkTensor(tensor, candidate.shape)
      const elements = shape === undefined ? tensor.entry.elements : product(shape)
      return { ...tensor, first: candidate.part * elements, elements }
    }
  }
  throw new ModelError(`the weight files lack the tensor '${name}' [${shape?.join(', ')}]`)
}

function checkTensor({ entry, file }: StoredTensor, shape: readonly number[] | undefined): void {
  if (
    shape !== undefined &&
    (entry.shape.length !== shape.length || entry.shape.some((size, i) => size !== shape[i]))
  ) {
    const sizes = `[${entry.shape.join(', ')}]; config.json means [${shape.join(', ')}]`
    throw new ModelError(`${basename(file.path)} has '${entry.name}' ${sizes}`)
  }
  if (!isFloatDtype(entry.dtype) || entry.dtype.startsWith('F8')) {
    throw new ModelError(`${basename(file.path)} has '${entry.name}' as ${entry.dtype}; served: F32, F16, BF16, F64`)
  }
}

function unusedTensors(stored: ReadonlyMap<string, StoredTensor>, places: ReadonlyMap<string, Place>): string[] {
  const used = new Set([...places.values()].map(({ entry }) => entry.name))
  return [...stored.keys()].filter((name) => !used.has(name) && !COMPUTED.test(name))
}

function storedNumbers({ file, entry, first }: Place): StoredNumbers {
  // `checkTensor` lets no other through.
  const dtype = entry.dtype as FloatDtype
  return { fd: file.fd, position: entry.begin + first * FLOAT_BYTES[dtype], dtype }
}

async function readBfloat16({ file, entry, first, elements }: Place): Promise<Uint16Array | undefined> {
  if (entry.dtype !== 'BF16') {
    return undefined
  }
  const buffer = new SharedArrayBuffer(2 * elements)
  await file.readBytes(entry.begin + 2 * first, new Uint8Array(buffer))
  return new Uint16Array(buffer)
}

const COMPARED_AT_ONCE = 1 << 20

async function equalTensors(a: Place, b: Place): Promise<boolean> {
  if (a.elements !== b.elements) {
    return false
  }
  const read = (place: Place, at: number, length: number) =>
    place.file.readPart(place.entry.name, place.first + at, new Float32Array(length))
  for (let at = 0; at < a.elements; at += COMPARED_AT_ONCE) {
    const length = Math.min(COMPARED_AT_ONCE, a.elements - at)
    const [left, right] = await Promise.all([read(a, at, length), read(b, at, length)])
    if (!left.every((value, i) => value === right[i])) {
      return false
    }
  }
  return true
}

/** Two samples of a tensor, at its start and in its middle, tell fine-tunes of one model apart. */
const SAMPLE_BYTES = 4096

function addFiles(hash: Hash, files: readonly SafetensorsFile[]): void {
  for (const file of files) {
    hash.update(`\n${basename(file.path)} ${file.size}\n`)
    const entries = [...file.header.tensors.values()].sort((a, b) => a.begin - b.begin)
    for (const { name, dtype, shape, begin, end } of entries) {
      hash.update(`${JSON.stringify([name, dtype, shape, begin, end])}\n`)
      const middle = begin + Math.floor((end - begin) / 2)
      for (const at of [begin, middle]) {
        hash.update(file.readBytesNow(at, new Uint8Array(Math.min(SAMPLE_BYTES, end - at))))
      }
    }
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
