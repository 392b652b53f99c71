/** The safetensors files of a checkpoint, one or sharded by an index: where each tensor lies, and reading it. */

import type { Hash } from 'node:crypto'
import { access, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { isFloatDtype } from '../formats/float16.ts'
import { openSafetensors, type SafetensorsEntry, type SafetensorsFile } from '../formats/safetensors.ts'
import { ModelError } from './model-error.ts'

export interface WeightFiles {
  /** Widened to float32. */
  read(name: string, out?: Float32Array): Promise<Float32Array>
  /** The files' names, sizes, headers, and samples of every tensor. */
  addTo(hash: Hash): Promise<void>
  warnings: string[]
  close(): Promise<void>
}

interface Place {
  file: SafetensorsFile
  entry: SafetensorsEntry
}

const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'
/** What some checkpoints keep beside the weights: masks and frequencies that the code makes itself. */
const COMPUTED = /(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|position_ids)$/
/** Prefixes of the model inside its class; checkpoints of the bare model lack them (GPT-2 as first published). */
const PREFIXES = ['transformer.', 'model.']

/** `wanted`: every tensor that must be there, with its shape. */
export async function openWeightFiles(
  directory: string,
  wanted: ReadonlyMap<string, readonly number[]>,
): Promise<WeightFiles> {
  const files: SafetensorsFile[] = []
  try {
    for (const name of await weightFileNames(directory)) {
      files.push(await openWeightFile(join(directory, name)))
    }
    const places = new Map<string, Place>()
    for (const file of files) {
      for (const entry of file.header.tensors.values()) {
        places.set(entry.name, { file, entry })
      }
    }
    const found = new Map<string, Place>()
    for (const [name, shape] of wanted) {
      found.set(name, find(places, name, shape))
    }
    return {
      read: (name, out) => found.get(name)!.file.read(found.get(name)!.entry.name, out),
      addTo: (hash) => addFiles(hash, files),
      warnings: unusedTensors(places, found),
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

function find(places: ReadonlyMap<string, Place>, name: string, shape: readonly number[]): Place {
  const prefix = PREFIXES.find((it) => name.startsWith(it)) ?? ''
  const place = places.get(name) ?? places.get(name.slice(prefix.length))
  if (place === undefined) {
    throw new ModelError(`the weight files lack the tensor '${name}' [${shape.join(', ')}]`)
  }
  const { entry, file } = place
  if (entry.shape.length !== shape.length || entry.shape.some((size, i) => size !== shape[i])) {
    const sizes = `[${entry.shape.join(', ')}]; config.json means [${shape.join(', ')}]`
    throw new ModelError(`${basename(file.path)} has '${name}' ${sizes}`)
  }
  if (!isFloatDtype(entry.dtype) || entry.dtype.startsWith('F8')) {
    throw new ModelError(`${basename(file.path)} has '${name}' as ${entry.dtype}; served: F32, F16, BF16, F64`)
  }
  return place
}

function unusedTensors(places: ReadonlyMap<string, Place>, found: ReadonlyMap<string, Place>): string[] {
  const used = new Set([...found.values()].map(({ entry }) => entry.name))
  const unused = [...places.keys()].filter((name) => !used.has(name) && !COMPUTED.test(name))
  if (unused.length === 0) {
    return []
  }
  const some = unused.slice(0, 5).join(', ')
  return [
    `the weight files have ${unused.length} tensors that the model does not use: ${some}${unused.length > 5 ? ', …' : ''}`,
  ]
}

/** Two samples of a tensor, at its start and in its middle, tell fine-tunes of one model apart. */
const SAMPLE_BYTES = 4096

async function addFiles(hash: Hash, files: readonly SafetensorsFile[]): Promise<void> {
  for (const file of files) {
    hash.update(`\n${basename(file.path)} ${file.size}\n`)
    const entries = [...file.header.tensors.values()].sort((a, b) => a.begin - b.begin)
    for (const { name, dtype, shape, begin, end } of entries) {
      hash.update(`${JSON.stringify([name, dtype, shape, begin, end])}\n`)
      const middle = begin + Math.floor((end - begin) / 2)
      for (const at of [begin, middle]) {
        hash.update(await file.readBytes(at, Math.min(SAMPLE_BYTES, end - at)))
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
