/** Finds and loads the ONNX Runtime shared library that onnxruntime-node brings, and checks its version. */

import { createRequire } from 'node:module'
import path from 'node:path'
import koffi from 'koffi'
import { RingletError } from '../../shared/errors.ts'

/** The C API version whose function table `functions.ts` compiles in: ONNX Runtime 1.29. The table only grows at its end. */
const API_VERSION = 29

/**
 * Initializers that a session gets from memory are declared in the model as external data. ONNX Runtime wants the file
 * named there to exist below `externalDataFolder()`, and never opens it.
 */
export const EXTERNAL_DATA_FILE = 'package.json'

export function externalDataFolder(): string {
  return path.dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json'))
}

/** Address of the `OrtApi` function table. */
export interface OrtLibrary {
  table: bigint
  version: string
  file: string
}

export function ortLibraryFile(platform: string = process.platform, arch: string = process.arch): string {
  const names: Record<string, string> = {
    linux: 'libonnxruntime.so.1',
    darwin: 'libonnxruntime.1.dylib',
    win32: 'onnxruntime.dll',
  }
  const name = names[platform]
  if (name === undefined) {
    throw new RingletError('not_supported', `ONNX Runtime has no library for platform '${platform}'`)
  }
  return path.join(externalDataFolder(), 'bin', 'napi-v6', platform, arch, name)
}

/** `file`: another build of the library, e.g. one that lies beside its CUDA provider. */
export function loadOrtLibrary(file: string = ortLibraryFile()): OrtLibrary {
  const base: bigint = openLibrary(file).func('OrtGetApiBase', 'void *', [])()
  const version: string = koffi.call(koffi.decode(base, koffi.sizeof('void *'), 'void *'), GET_VERSION)
  if (!isAtLeast(version, API_VERSION)) {
    throw new RingletError('internal', `ONNX Runtime 1.${API_VERSION} or later is needed; '${file}' is ${version}`)
  }
  const table: bigint | null = koffi.call(koffi.decode(base, 'void *'), GET_API, API_VERSION)
  if (table === null) {
    throw new RingletError('internal', `'${file}' (${version}) does not offer ONNX Runtime's C API ${API_VERSION}`)
  }
  return { table, version, file }
}

const GET_API = koffi.proto('void *(uint32_t version)')
const GET_VERSION = koffi.proto('const char *()')

/** koffi unloads a library whose handle was collected, and the table's functions with it: handles live as long as the process. */
const openLibraries = new Map<string, ReturnType<typeof koffi.load>>()

function openLibrary(file: string): ReturnType<typeof koffi.load> {
  const known = openLibraries.get(file)
  if (known !== undefined) {
    return known
  }
  try {
    const library = koffi.load(file)
    openLibraries.set(file, library)
    return library
  } catch (cause) {
    throw new RingletError('internal', `ONNX Runtime cannot be loaded from '${file}'`, { cause })
  }
}

/** Compares the minor of `1.x.y` with the API version, which counts the same. */
function isAtLeast(version: string, apiVersion: number): boolean {
  const [major, minor] = version.split('.').map(Number)
  return major !== undefined && minor !== undefined && (major > 1 || (major === 1 && minor >= apiVersion))
}
